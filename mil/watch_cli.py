"""`wsvad watch`: a camera, a stream, a pipe or a growing file -> scores and events while it runs, as JSON lines."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from mil.options import PATH, key_values, load_plugins, plugins_option
from mil.rules import RULES

if TYPE_CHECKING:
    from extract.live import Piece

log = logging.getLogger(__name__)


@click.command()
@click.argument("run", type=PATH)
@click.argument("source")
@click.option("--text", is_flag=True, help="For people: one line for each event, and how it goes on stderr.")
@click.option("--log", "log_path", type=PATH, help="Append the JSON lines to this file, too.")
@click.option("--rule", type=click.Choice(RULES), help="Whose weights.  [the run's select.rule]")
@click.option("--threshold", type=float, help="Events begin at this score.  [chosen on the training videos]")
@click.option("--low", type=float, help="And go on down to this one.")
@click.option("--min-duration", type=click.FloatRange(0), help="Events shorter than that are none, seconds.  [1]")
@click.option("--merge", type=click.FloatRange(0), help="Events less than that apart are one, seconds.  [2]")
@click.option("--window", type=click.IntRange(1), help="Clips that a head sees which is not causal.  [64]")
@click.option("--delay", type=click.IntRange(0), help="Clips that it sees behind the one it scores.  [window / 4]")
@click.option("--smooth", type=click.IntRange(1), help="evaluate.smooth; 1: none, and no delay.  [recipe's]")
@click.option("--offline", is_flag=True, help="Do not make a head causal that could be; score in a window.")
@click.option("--once", is_flag=True, help="Stop at the end of the file, or where the source breaks off.")
@click.option("--patience", type=click.FloatRange(0), default=10.0, show_default=True,
              help="Seconds without news after which a growing file counts as finished.")  # fmt: skip
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames per second, where SOURCE does not say.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the source, e.g. rtsp_transport=tcp.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:1, mps; of head and nets.")
@click.option("--weights", type=PATH, multiple=True, help="A file that made the features, if it is no fetched one.")
@plugins_option
def watch(
    run: Path,
    source: str,
    text: bool,
    log_path: Path | None,
    rule: str | None,
    threshold: float | None,
    low: float | None,
    min_duration: float | None,
    merge: float | None,
    window: int | None,
    delay: int | None,
    smooth: int | None,
    offline: bool,
    once: bool,
    patience: float,
    fps: float | None,
    options: tuple[str, ...],
    device: str,
    weights: tuple[Path, ...],
    plugins: tuple[Path, ...],
) -> None:
    """Score SOURCE while it runs: a file that is being written, a named pipe, a device or a stream's URL.

    Prints a JSON line for each clip (`clip`), when an event begins (`alarm`) and when it is over (`event`), when the
    source breaks off (`gap`), first what is watched with (`start`), last how much it was and the latencies (`end`).

    Heads that look back only score a clip when it ends. Of `hlnet` and `cma_la` the causal form is taken, as `wsvad
    score --online` does. All others score in a sliding window, some clips later; `delay_s` says how much.

    Ctrl-C or SIGTERM ends it with the last line and exit code 0.
    """
    from extract.device import device_of
    from extract.live import LiveSource
    from mil.watch_run import watcher_of
    from mil.watch_tell import Teller

    load_plugins(plugins)
    device = device_of(device)
    watcher, wanted = watcher_of(
        run,
        rule=rule,
        threshold=threshold,
        low=low,
        min_s=min_duration,
        merge_s=merge,
        window=window,
        delay=delay,
        smooth=smooth,
        offline=offline,
        device=device,
        weights=weights,
        source=source,
    )
    live = LiveSource(
        source,
        follow=not once,
        reconnect=not once,
        patience_s=patience,
        fps=fps,
        options=key_values(options),
        on_note=lambda note: log.warning("%s", note),
        **wanted,
    )
    for warning in watcher.about["warnings"]:
        click.echo(f"WARNING: {warning}", err=True)
    log.info("watching %s", source)
    how = "failed"
    try:
        with live, closing(Teller(log_path, text=text)) as tell, stop_asked() as stop:
            try:
                for piece in until(stop, iter(live)):
                    tell(watcher.push(piece))
                how = "interrupted" if stop.came else "ended"
            except KeyboardInterrupt:
                how = "interrupted"
            finally:
                tell(watcher.close(how))
    except BrokenPipeError:  # whoever read has had enough; nothing is to be said at exit, either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Stop:
    """Whether Ctrl-C or SIGTERM came; while `waiting`, they break in, otherwise what is under way is done first."""

    def __init__(self) -> None:
        self.came = self.waiting = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal; the second one breaks in everywhere."""
        again, self.came = self.came, True
        if self.waiting or again:
            raise KeyboardInterrupt


@contextmanager
def stop_asked() -> Iterator[Stop]:
    """In the block, Ctrl-C and SIGTERM are the `Stop`'s; one that this process ignores, as under nohup, stays so."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    for number in mine:
        signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number in mine:
            signal.signal(number, before[number])


def until(stop: Stop, pieces: "Iterator[Piece]") -> "Iterator[Piece]":
    """The pieces, until there are no more or a stop is asked for."""
    while True:
        try:
            stop.waiting = True  # before the look at `came`: a signal in between would wait for the next piece
            piece = None if stop.came else next(pieces, None)
        except KeyboardInterrupt:
            return
        finally:
            stop.waiting = False
        if piece is None:
            return
        yield piece
