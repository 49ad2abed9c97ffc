"""A checkpoint is read from one file, whatever is saved meanwhile."""

import torch

from mil import checkpoint
from mil.model import Model
from tests.mil_helpers import small_config


def test_weights_saved_while_a_checkpoint_is_read_are_not_taken_for_its_own(tmp_path, monkeypatch):
    config, dims, path = small_config(), {"rgb": 8}, tmp_path / "last"
    first, second = ({k: v + i for k, v in Model(config, dims).state_dict().items()} for i in (0, 1))

    def save(weights, step):
        checkpoint.save(path, weights, config, dims, (), selected_by="last step", step=step)

    save(first, 10)
    real = checkpoint.safe_open

    class Slow:
        """Asked which step it is of, it answers; then training goes on."""

        def __init__(self, *args):
            self.file = real(*args)

        def __enter__(self):
            self.inner = self.file.__enter__()
            return self

        def __exit__(self, *args):
            return self.file.__exit__(*args)

        def metadata(self):
            found = self.inner.metadata()
            save(second, 20)
            return found

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(checkpoint, "safe_open", Slow)
    loaded = checkpoint.load(path)
    assert loaded.step == 10
    assert all(torch.equal(v, first[k]) for k, v in loaded.model.state_dict().items())


def test_who_may_read_the_run_may_read_its_weights(tmp_path):
    config, dims = small_config(), {"rgb": 8}
    state = Model(config, dims).state_dict()
    checkpoint.save(tmp_path / "last", state, config, dims, (), selected_by="last step", step=1)
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1
