"""An action that does nothing, so that what is measured is runwire itself."""

from pydantic import BaseModel

import runwire

app = runwire.App()


class Nothing(BaseModel):
    """No parameters."""


@app.action("noop")
async def noop(_params: Nothing, _ctx: runwire.Context) -> None:
    """Do nothing."""
