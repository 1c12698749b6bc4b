"""Ask the trainer to stop, and take it back without taking back what others asked."""

from lightning.pytorch import Trainer

from lightning_tricks.callbacks._trainer import callbacks_of


class StopRequest:
    """One callback's wish to stop. Callbacks that hold one as ``stop_request`` know of each other."""

    def __init__(self) -> None:
        self.asked = False
        self._others = False

    def ask(self, trainer: Trainer) -> None:
        """Ask to stop; ``min_epochs`` and ``min_steps`` may still hold the run."""
        if not self.asked:
            self._others = trainer.should_stop and not _any_asked(trainer)
        self.asked = True
        trainer.should_stop = True

    def withdraw(self, trainer: Trainer) -> None:
        """Take the wish back; the trainer goes on unless somebody else asked to stop."""
        if not self.asked:
            return
        self.asked = False
        trainer.should_stop = self._others or _any_asked(trainer)


def _any_asked(trainer: Trainer) -> bool:
    requests = (getattr(callback, "stop_request", None) for callback in callbacks_of(trainer))
    return any(request.asked for request in requests if isinstance(request, StopRequest))
