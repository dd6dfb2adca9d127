"""Whether a figure grows: series of which we know it."""

from __future__ import annotations

import random
from xml.etree import ElementTree as ET

import pytest

from tests.chaos import plot
from tests.chaos.flatness import Finding, judge, restarted
from tests.chaos.samples import Figure, Sample

SECONDS = 900.0


def samples(value, figure: Figure = Figure.DESCRIPTORS, process: str = "worker-1", pid: int = 1) -> list[Sample]:
    """A sample every three seconds, as ``value`` says."""
    return [Sample(at, process, pid, figure, value(at)) for at in range(0, int(SECONDS), 3)]


def judged(value, figure: Figure = Figure.DESCRIPTORS) -> Finding:
    [finding] = judge(samples(value, figure), ["worker-1"], SECONDS)
    return finding


def test_a_figure_that_stays_is_flat() -> None:
    finding = judged(lambda _: 30)
    assert (finding.first, finding.last, finding.rise) == (30, 30, 0)
    assert finding.is_flat
    assert finding.is_known


def test_noise_is_flat() -> None:
    dice = random.Random(1)
    assert judged(lambda _: 80 + dice.uniform(-15, 15), Figure.MEMORY).is_flat


def test_a_rise_while_it_warms_up_is_flat() -> None:
    assert judged(lambda at: 30 + min(at, 200) * 0.5).is_flat


def test_a_jump_that_does_not_last_is_flat() -> None:
    assert judged(lambda at: 500 if 700 < at < 850 else 30).is_flat


@pytest.mark.parametrize("figure", [Figure.DESCRIPTORS, Figure.MEMORY, Figure.WAITING, Figure.THREADS, Figure.WAL])
def test_a_slow_leak_is_not_flat(figure: Figure) -> None:
    dice = random.Random(2)
    assert not judged(lambda at: 30 + at / 40 + dice.uniform(-3, 3), figure).is_flat


def test_a_wal_that_is_large_is_not_flat() -> None:
    assert not judged(lambda _: 300, Figure.WAL).is_flat


def test_a_process_that_was_killed_is_not_judged_and_one_that_should_have_lived_is_told() -> None:
    lived, killed = samples(lambda _: 30), samples(lambda at: at, process="worker-2")
    again = samples(lambda _: 30, pid=2)
    assert [finding.process for finding in judge(lived + killed, ["worker-1"], SECONDS)] == ["worker-1"]
    assert restarted(lived + killed, ["worker-1"]) == []
    assert restarted(lived + again, ["worker-1"]) == ["worker-1"]
    assert restarted(killed, ["worker-1"]) == ["worker-1"]


def test_a_few_samples_say_nothing() -> None:
    [finding] = judge(samples(lambda _: 30)[-5:], ["worker-1"], SECONDS)
    assert not finding.is_known


def test_the_picture_has_a_panel_for_each_figure_and_a_line_for_each_process() -> None:
    seen = samples(lambda _: 30) + samples(lambda _: 31, pid=2) + samples(lambda _: 80, Figure.MEMORY, "adapter-1")
    picture = ET.fromstring(plot.draw(seen, ["adapter-1"], [10, 20], "a <title>"))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <title>", "descriptors", "memory, MiB", "worker-1", "adapter-1"} <= set(texts)
    lines = [path for path in picture.iter("{http://www.w3.org/2000/svg}path") if path.get("fill") == "none"]
    assert len(lines) == 3
