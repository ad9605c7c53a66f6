"""``--eval_every``: the networks of a training are scored as it goes, and the best of them kept."""

from math import nan

from fastcyclegan.config import TrainConfig
from fastcyclegan.files import printable
from fastcyclegan.runs.best import Best
from fastcyclegan.runs.folder import RunFolder
from fastcyclegan.systems import System


class Judge:
    """Scores the networks of ``system``, without a trace in what is trained.

    Args:
        config: the options.
        folder: of the run.
        system: what is trained.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, system: System) -> None:
        self.config, self.folder, self.system = config, folder, system
        self._best: Best | None = None

    def due(self, done: int, last: bool) -> bool:
        """Whether the networks are to be scored after ``done`` steps."""
        every = self.config.eval_every
        return every is not None and (last or done % every == 0)

    def scores(self) -> dict[str, float]:
        """The scores of the networks now, by name."""
        return self.system.exam.scores(self.system.model.networks)

    def keep(self, done: int, scores: dict[str, float]) -> str | None:
        """Keep the networks, scored after ``done`` steps, if they are the best; says so in a line.

        The mean over both directions decides. Raises OSError: they cannot be written.
        """
        exam, networks = self.system.exam, self.system.model.networks
        if self._best is None:
            self._best = Best(self.folder, exam.metric, exam.digest)
        names = (exam.metric, f"{exam.metric}_A", f"{exam.metric}_B")
        values = [scores[name] for name in names if name in scores]
        weights = (p for net in networks.values() for p in net.parameters())
        # of weights that are not finite the images are black, which is a score like any other
        score = sum(values) / len(values) if all(p.isfinite().all() for p in weights) else nan
        pixels = self.config.pixel_range
        if not self._best.offer(done, score, scores, networks, pixels):
            return None
        return (
            f"best networks yet, {exam.metric} {score:.4g}, kept in {printable(self.folder.best)}"
        )

    def verdict(self) -> str | None:
        """Which networks are the best, in one line, if any are."""
        standing = self._best and self._best.standing
        return f"best networks: {standing}, in {printable(self.folder.best)}" if standing else None
