"""Room for blocks beside the client's `max_tokens`, as far as the model has it."""

from __future__ import annotations

import msgspec

from asynclm.adapters.models.protocol import Abilities, Model, ModelError, Request, Stream


class Roomy:
    """A model that is asked for `room` tokens more than each request says, for the blocks that the client doesn't see.

    A client may ask for all that a model can write. Where the upstream refuses for that, the request is sent as it is,
    and so are the further ones of the run.
    """

    def __init__(self, model: Model, room: int) -> None:
        self._model = model
        self._room = room

    def abilities(self, model: str) -> Abilities:
        """What the model can do."""
        return self._model.abilities(model)

    async def open(self, request: Request) -> Stream:
        """Send the request. Raises `ModelError`."""
        if self._room and request.max_tokens is not None:
            try:
                return await self._model.open(
                    msgspec.structs.replace(request, max_tokens=request.max_tokens + self._room)
                )
            except ModelError as error:
                if not _is_about_max_tokens(error):
                    raise
                self._room = 0
        return await self._model.open(request)

    async def aclose(self) -> None:
        """Nothing of its own to close."""


def _is_about_max_tokens(error: ModelError) -> bool:
    said = f"{error.param} {error.message}"
    return error.status in (400, 422) and any(name in said for name in ("max_tokens", "max_completion_tokens"))
