"""Pieces of text that hold more than one block."""

from playbook import Playbook


def test_a_piece_with_two_blocks_is_read_to_its_end_before_a_live_sequence_is_told_anything() -> None:
    p = Playbook("auto", inject=True)
    p.writes("[CALL] open [HEAD] f(")
    p.writes("[CALL] [HEAD] m() [END] and more")  # the first is rejected, the second gets an id: it is the client's
    (told,) = p.injected
    assert told.startswith("[INTR] open [HEAD] ")
    (id,) = p.handed.values()
    written = "".join(segment.text for segment in p.run.transcript if segment.author == "model")
    assert f"[CALL] {id} [HEAD] m() [END] and more" in written
