"""A dataset of one's own: wallets, as an asynchronous generator of pydantic rows."""

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal

from pydantic import BaseModel, Field

import runwire

app = runwire.App()


class WalletRow(BaseModel):
    """A row of the file; its fields are the columns."""

    id: int
    owner: str
    segment: str
    balance: Decimal
    since: date = Field(serialization_alias="customer since")


class WalletFilter(BaseModel):
    """Which wallets: fields of the task's target, next to ``export_index``."""

    minimum: Decimal = Decimal(0)


WALLETS = (
    WalletRow(id=1, owner="Ada", segment="gold", balance=Decimal("120.50"), since=date(2024, 3, 1)),
    WalletRow(
        id=2, owner='=HYPERLINK("http://example.com")', segment="gold", balance=Decimal(7), since=date(2025, 1, 9)
    ),
    WalletRow(id=3, owner="Grace", segment="silver", balance=Decimal("33.10"), since=date(2025, 6, 30)),
    WalletRow(id=4, owner="Zoë", segment="gold", balance=Decimal("-4.25"), since=date(2026, 2, 17)),
)
"""Yours come from a database, row by row."""


@app.dataset("wallet")
async def wallets(params: WalletFilter, ctx: runwire.Context) -> AsyncIterator[WalletRow]:
    """The wallets that hold at least ``minimum``; of the trigger's ``segment``, if it names one."""
    segment = ctx.filters.get("segment")
    for wallet in WALLETS:
        if wallet.balance >= params.minimum and segment in {None, wallet.segment}:
            yield wallet
