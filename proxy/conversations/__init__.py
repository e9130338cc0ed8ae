"""What is kept between the requests of a conversation: earlier turns, and runs that wait for their clients."""
