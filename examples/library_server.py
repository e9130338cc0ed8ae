"""An MCP server, as it could be anybody's: it knows nothing of asynclm. The books are made up.

python examples/library_server.py         over its pipes, as the proxy starts it
python examples/library_server.py http    over HTTP, at http://127.0.0.1:8000/mcp
"""

import asyncio
import sys

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ToolAnnotations
from pydantic import BaseModel

BOOKS = {"b1": ("The Sea at Night", "sea"), "b2": ("Tides", "sea"), "b3": ("High Pastures", "mountains")}
reserved: list[str] = []
server = MCPServer("library")


class Book(BaseModel):
    id: str
    title: str


class Shelf(BaseModel):
    books: list[Book]


# The hints say what a call does to the world. The proxy reads them; without any, a tool counts as one that changes it.
@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def find_books(topic: str) -> Shelf:
    """The books on a topic."""
    await asyncio.sleep(0.2)  # a real library would look into its catalogue here
    found = [Book(id=id, title=title) for id, (title, about) in BOOKS.items() if about == topic]
    if not found:
        raise ValueError(f"no books on {topic!r}")
    return Shelf(books=found)


@server.tool(annotations=ToolAnnotations(idempotent_hint=True, destructive_hint=False), structured_output=False)
async def reserve(book: str, context: Context) -> str:
    """Reserve a book by its id."""
    for step, what in enumerate(("asking the branch", "walking to the shelf", "putting it aside"), start=1):
        await asyncio.sleep(0.1)
        await context.report_progress(step, 3, what)  # as long as it does, the proxy goes on waiting
    if book not in reserved:
        reserved.append(book)
    return f"{BOOKS[book][0]} waits for you"


@server.tool()
def close_library() -> str:
    """Send everybody home."""
    return "closed"


if __name__ == "__main__":
    server.run("streamable-http" if "http" in sys.argv else "stdio")
