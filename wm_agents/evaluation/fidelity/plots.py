"""The plots of the fidelity page, one function each."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wm_agents.evaluation.fidelity.calibration import Reliability
from wm_agents.evaluation.fidelity.closed_loop import Closed
from wm_agents.evaluation.fidelity.history import History
from wm_agents.evaluation.fidelity.open_loop import Ahead, OpenLoop
from wm_agents.evaluation.fidelity.ranking import Ranking
from wm_agents.evaluation.fidelity.temperature import Warmth

REAL, DREAM, OTHER = "#0072B2", "#D55E00", "#777777"  # Colour-blind safe.
NAN = float("nan")


def plot_errors(loop: OpenLoop) -> Figure:
    """Error of frames by steps ahead."""
    figure, axes = _axes("steps ahead", "mean squared error of the frame")
    steps = _steps(axes, loop.horizons)
    axes.plot(steps, _column([h.copy_mse for h in loop.horizons]), "o-", color=OTHER, label="copy the last frame")
    axes.plot(steps, _column([h.sampled.obs_mse for h in loop.horizons]), "o--", color=DREAM, label="dream, sampled")
    axes.plot(steps, _column([h.likely.obs_mse for h in loop.horizons]), "o-", color=DREAM, label="dream, most likely")
    if loop.rec_mse is not None:
        axes.axhline(loop.rec_mse, color=REAL, linestyle=":", label="encoded and decoded real frame")
    axes.set_ylim(bottom=0)
    return _done(figure, axes)


def plot_rewards(loop: OpenLoop) -> Figure:
    """Correlation of rewards by steps ahead."""
    figure, axes = _axes("steps ahead", "correlation with the real reward")
    steps = _steps(axes, loop.horizons)
    axes.plot(steps, _column([h.likely.rew_corr for h in loop.horizons]), "o-", color=DREAM, label="of this step")
    axes.plot(
        steps, _column([h.likely.sum_corr for h in loop.horizons]), "o-", color=REAL, label="summed up to this step"
    )
    axes.set_ylim(-0.25, 1.05)
    axes.axhline(0, color=OTHER, linewidth=0.8)
    return _done(figure, axes)


def plot_ends(loop: OpenLoop) -> Figure:
    """Precision and recall of termination by steps ahead."""
    figure, axes = _axes("steps ahead, up to", "share of terminations")
    steps = _steps(axes, loop.horizons)
    rows = [h.sampled for h in loop.horizons]
    axes.plot(
        steps, _column([r.end_recall for r in rows]), "o-", color=REAL, label="recall: predicted real terminations"
    )
    axes.plot(
        steps,
        _column([r.end_precision for r in rows]),
        "o-",
        color=DREAM,
        label="precision: correct dreamed terminations",
    )
    axes.set_ylim(-0.05, 1.05)
    return _done(figure, axes)


def plot_reliability(measured: Reliability) -> Figure:
    """Predicted against observed share of terminations."""
    figure, axes = _axes("predicted probability of termination", "observed share of terminations")
    axes.plot([0, 1], [0, 1], color=OTHER, linewidth=0.8, label="perfect calibration")
    axes.plot([b.said for b in measured.bins], [b.came for b in measured.bins], "o-", color=DREAM, label="observed")
    for b in measured.bins:
        axes.annotate(f"{b.steps:,}", (b.said, b.came), textcoords="offset points", xytext=(5, 4), fontsize=7)
    return _done(figure, axes)


def plot_closed_loop(rows: Sequence[Closed]) -> Figure:
    """Returns of the policy from real latents, in the dream and in reality."""
    figure, axes = _axes("steps from a real latent", "mean return")
    axes.plot([r.steps for r in rows], [r.real for r in rows], "o-", color=REAL, label="real")
    axes.plot([r.steps for r in rows], [r.dream for r in rows], "o-", color=DREAM, label="dream")
    return _done(figure, axes)


def plot_ranking(ranking: Ranking) -> Figure:
    """Dream return against real return, one point per policy."""
    figure, axes = _axes("real return", "dream return", size=(6.4, 4.4))
    rows = ranking.policies
    real, dream = [r.real_mean for r in rows], [r.dream_mean for r in rows]
    wide, high = [r.real_ci95 or 0.0 for r in rows], [r.dream_ci95 or 0.0 for r in rows]
    axes.errorbar(real, dream, high, wide, "o", color=DREAM, elinewidth=0.8)
    ends = [min(real + dream), max(real + dream)]
    axes.plot(ends, ends, color=OTHER, linewidth=0.8, label="dream = real")
    for i, row in enumerate(ranking.by_real, 1):
        at, off = (row.real_mean, row.dream_mean), (0, 11 if i % 2 else -11)
        axes.annotate(str(i), at, off, textcoords="offset points", ha="center", va="center", fontsize=8)
    return _done(figure, axes)


def plot_temperatures(rows: Sequence[Warmth], real: float | None) -> Figure:
    """Dream and real return by temperature."""
    figure, axes = _axes("temperature", "return")
    dreams, spread = [r.dream for r in rows], [r.dream_ci95 or 0.0 for r in rows]
    axes.errorbar([r.tau for r in rows], dreams, spread, fmt="o-", color=DREAM, label="saved policy, dream")
    if real is not None:
        axes.axhline(real, color=REAL, linestyle=":", label="saved policy, real")
    trained = [r for r in rows if r.trained_real is not None]
    if trained:
        taus = [r.tau for r in trained]
        axes.plot(taus, _column([r.trained_dream for r in trained]), "s--", color=DREAM, label="trained there, dream")
        axes.plot(taus, _column([r.trained_real for r in trained]), "s--", color=REAL, label="trained there, real")
    return _done(figure, axes)


def plot_history(history: History) -> Figure:
    """Dream return and real return of each round."""
    figure, axes = _axes("round or generation", "return")
    rounds = [r.round for r in history.rounds]
    axes.plot(rounds, [r.dream for r in history.rounds], "o-", color=DREAM, label="dream")
    axes.plot(rounds, [r.real for r in history.rounds], "o-", color=REAL, label="real")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _done(figure, axes)


def plot_disagreement(loop: OpenLoop) -> Figure:
    """Correlation of disagreement and error, by steps ahead."""
    figure, axes = _axes("steps ahead", "rank correlation with the error")
    steps = _steps(axes, loop.horizons)
    axes.plot(steps, _column([h.likely.doubt_corr for h in loop.horizons]), "o-", color=DREAM, label="disagreement")
    axes.axhline(0, color=OTHER, linewidth=0.8)
    axes.set_ylim(-0.25, 1.05)
    return _done(figure, axes)


def _axes(x: str, y: str, size: tuple[float, float] = (6.4, 3.4)) -> tuple[Figure, Axes]:
    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _steps(axes: Axes, rows: Sequence[Ahead]) -> list[int]:
    """The horizons, on an axis that magnifies the first steps."""
    steps = [row.steps for row in rows]
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks(steps, [str(s) for s in steps])
    axes.set_xlim(0.8 * steps[0], 1.2 * steps[-1])
    axes.minorticks_off()
    return steps


def _column(values: Sequence[float | None]) -> list[float]:
    return [NAN if value is None else value for value in values]


def _done(figure: Figure, axes: Axes) -> Figure:
    axes.legend(frameon=False, fontsize=8)
    return figure
