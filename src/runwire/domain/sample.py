"""The sample task that an installation finds on its first start, and the chain it lives in."""

from __future__ import annotations

from runwire.domain.lifecycle import Definition
from runwire.domain.task import Target

CHAIN, SAMPLE_ID = 1764, 12345

SAMPLE = Definition(
    chain=CHAIN,
    desc="Sample: exports this chain's run history as CSV",
    target=Target.model_validate({"action": "export", "export_index": "runs", "export_format": "csv"}),
    trigger={},
)
