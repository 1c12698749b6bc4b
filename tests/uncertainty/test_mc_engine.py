"""The engine: closed forms, one prefix, the same samples however they are computed, and everything given back."""

import copy
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from lightning_tricks import mc_forward
from lightning_tricks._base import UserInputError, rng_state
from lightning_tricks.uncertainty import MCEngine
from lightning_tricks.uncertainty.engine._noise import KeyedNoise
from lightning_tricks.uncertainty.engine._plan import distance


def head_net():
    """A convolution with batch norm, then a head with dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
    )


def exact_net():
    """The same with multiples of 1/16 as weights: every sum is exact, in whatever order a processor's kernel adds."""
    net = head_net()
    net[1].eps = 0.0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 16).round() / 16)
    return net


IMAGES = torch.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)


@pytest.mark.parametrize("masks", ["independent", "shared"])
@pytest.mark.parametrize("p", [0.5, 0.2, 0.005])
def test_closed_form(masks, p):
    """w·dropout(x) has mean w·x and variance p/(1-p) Σ(wx)²."""
    w, x = torch.rand(1, 40) + 0.5, torch.rand(3, 40) + 0.5
    net = nn.Sequential(nn.Dropout(p), nn.Linear(40, 1, bias=False))
    net[1].weight.data = w
    samples = mc_forward(net, x, samples=4000, seed=0, masks=masks)[..., 0]
    variance = p / (1 - p) * (w * x).square().sum(1)
    assert ((samples.mean(0) - (x @ w.T)[:, 0]).abs() < 5 * (variance / 4000).sqrt()).all()
    # Standard error of a variance: sqrt((kurtosis - 1) / S); rare drops have the heavier tails.
    kurtosis = ((samples - samples.mean(0)) ** 4).mean(0) / samples.var(0) ** 2
    assert ((samples.var(0) / variance - 1).abs() < 5 * ((kurtosis - 1) / 4000).sqrt()).all()


def test_shared_masks_make_rows_move_together():
    x = torch.ones(2, 30)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(30, 1))
    together = mc_forward(net, x, samples=50, seed=0, masks="shared")[..., 0]
    apart = mc_forward(net, x, samples=500, seed=0)[..., 0]
    assert torch.equal(together[:, 0], together[:, 1])
    assert np.corrcoef(apart.T.detach())[0, 1] == pytest.approx(0, abs=5 / 500**0.5)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_what_comes_before_the_first_dropout_is_computed_once(engine, chunk_size):
    """Rows that the convolution computes: each once per batch, whatever S."""
    run = MCEngine(head_net(), samples=20, engine=engine, chunk_size=chunk_size)
    run(IMAGES)
    with CountConvolved() as counter:
        run(IMAGES)
    assert counter.rows == len(IMAGES)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_many_samples_come_in_blocks_of_the_loops_and_share_the_prefix(masks):
    samples = 2 * 2**20 // (144 * 4) + 5  # of 144 features, a mebibyte per row and block
    run = MCEngine(head_net(), samples=samples, seed=3, masks=masks)
    run(IMAGES)
    blocks = []
    with CountConvolved() as counter:
        run.feed(lambda rows, drawn, out: blocks.append((drawn, out)), IMAGES)
    assert run.report.engine == "vmap"
    assert [len(drawn) for drawn, _ in blocks] == [1820, 1820, 5]
    assert counter.rows == len(IMAGES)
    some = range(1815, 1825)  # on both sides of a seam
    loop = MCEngine(head_net(), samples=samples, seed=3, masks=masks, engine="loop")
    one_by_one = []
    loop.feed(lambda rows, drawn, out: one_by_one.append(out), IMAGES, samples=some)
    whole = torch.cat([out for _, out in blocks])
    torch.testing.assert_close(whole[1815:1825], torch.cat(one_by_one))
    assert torch.equal(run(IMAGES), whole)


def test_a_prefix_that_cannot_be_kept_is_computed_for_every_block():
    class Overwriting(nn.Module):
        def forward(self, x):
            features = x.flatten(1) + 1
            out = F.dropout(features, 0.5, self.training)
            features.zero_()  # what a replay would have needed
            return out

    run = MCEngine(Overwriting(), samples=5000, seed=0)
    drawn = run(IMAGES)
    assert run.report.samples_at_once == 4096
    assert not run.report.prefix_shared
    kept = drawn != 0
    expected = (2 * (IMAGES.flatten(1) + 1)).expand_as(drawn)
    assert torch.equal(drawn[kept], expected[kept])
    assert kept[4096:].float().mean() == pytest.approx(0.5, abs=0.02)


class CountConvolved(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts rows where the work is done, below Python."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.rows += len(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_memory_holds_few_rows_at_a_time(engine):
    """Summaries of 100 samples of many wide rows, without the 60 MB that all samples of one layer would take."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 512), nn.Dropout(0.5), nn.Linear(512, 3))
    x = torch.randn(300, 8)
    run = MCEngine(net, samples=100, seed=0, engine=engine)
    rows, total = [], torch.zeros(300, 3)

    def sink(part, samples, out):
        rows.append(part.stop - part.start)
        total[part] += out.sum(0)

    with LargestResult() as seen:
        run.feed(sink, x)
    assert seen.bytes < 20e6
    assert run.report.engine == ("vmap" if engine == "auto" else "loop")
    assert (run.report.rows_at_once or 300) == max(rows)
    assert sum(rows) == 300
    deterministic = run.deterministic(x)
    spread = (net[2].weight.square() @ net[0](x).T.square()).T.sqrt() / 10  # p / (1 - p) = 1, 100 samples
    assert ((total / 100 - deterministic).abs() < 6 * spread).all()


class LargestResult(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


def test_vmapped_equals_looped_on_real_heads():
    net = head_net().eval()
    loop = mc_forward(net, IMAGES, samples=30, seed=4, engine="loop")
    vmap = mc_forward(net, IMAGES, samples=30, seed=4, engine="vmap")
    torch.testing.assert_close(vmap, loop, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", ["independent", "shared"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_bit_equal_over_batch_size_order_and_chunks(masks, engine):
    net = exact_net()
    x = (torch.randn(16, 1, 8, 8) * 8).round() / 8

    def draw(rows, **options):
        return mc_forward(net, x[rows], samples=12, seed=1, masks=masks, engine=engine, rows=rows, **options)

    everything = torch.arange(16)
    whole = draw(everything)
    assert torch.equal(torch.cat([draw(rows) for rows in everything.split(8)], 1), whole)
    assert torch.equal(draw(everything, chunk_size=4), whole)
    backwards = everything.flip(0)
    assert torch.equal(draw(backwards), whole[:, backwards])


def test_random_numbers_are_finite_and_symmetric_to_the_last_bit():
    """Words of all zeros and all ones, which give the smallest and the largest number."""

    class Extreme(KeyedNoise):
        def _words(self, site, row, samples, size, dtype):
            return np.array([[0, 2**32 - 1]], dtype=dtype)

    def draw(kind):
        return Extreme(0).draw(kind, "site", samples=range(1), rows=[0], size=2)[0, 0]

    assert draw("uniform").tolist() == [2**-24, 1 - 2**-24]
    low, high = draw("normal").tolist()
    assert low == pytest.approx(-high)
    assert high == pytest.approx(stats.norm.isf(2**-24), rel=1e-5)
    assert draw("exponential").tolist() == pytest.approx([24 * np.log(2), 2**-24])


def test_seeds():
    net, x = head_net(), IMAGES
    assert torch.equal(mc_forward(net, x, samples=3, seed=1), mc_forward(net, x, samples=3, seed=1))
    assert not torch.equal(mc_forward(net, x, samples=3, seed=1), mc_forward(net, x, samples=3, seed=2))
    assert not torch.equal(mc_forward(net, x, samples=3), mc_forward(net, x, samples=3))
    more = mc_forward(net, x, samples=9, seed=1, engine="loop")
    assert torch.equal(more[:3], mc_forward(net, x, samples=3, seed=1, engine="loop"))


class Fails(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.count += 1
        if self.calls == self.at:
            raise RuntimeError("broken")
        return x


@pytest.mark.parametrize("fail_at", [None, 1, 3])  # the second pass is a trial, which may fail
def test_everything_comes_back_as_it_was(fail_at):
    net = nn.Sequential(head_net(), nn.Dropout(0.5), Fails(fail_at))
    net.train()
    net[0][1].eval()
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    torch.manual_seed(5)
    before, grad = rng_state(), torch.is_grad_enabled()
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="broken"):
        mc_forward(net, IMAGES, samples=4)
    assert [module.training for module in net.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()] == hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    after = rng_state()
    assert torch.equal(after["torch"], before["torch"])
    assert after["python"] == before["python"]
    assert torch.equal(after["numpy"][1], before["numpy"][1])
    assert torch.is_grad_enabled() == grad


def test_the_input_is_not_overwritten():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(8, 2))
    x = torch.linspace(-1, 1, 16).reshape(2, 8)
    for engine in ("loop", "vmap", "repeat"):
        before = x.clone()
        mc_forward(net, x, samples=3, engine=engine)
        assert torch.equal(x, before)
    MCEngine(net, samples=3).deterministic(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(8, 2), "found nothing random in Linear"),
        (nn.Sequential(nn.Dropout(0.0), nn.Linear(8, 2)), r"Found, but off: 0#0 \(dropout, p=0.0\)"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2)), None),
    ],
)
def test_nothing_random_is_an_error(net, message):
    if message is None:
        with warnings.catch_warnings():  # newer versions of torch call it deprecated
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.trace(net.eval(), torch.ones(3, 8))
        net, message = script, "Compiled to TorchScript, so their dropout cannot be reached"
    with pytest.raises(UserInputError, match=message):
        mc_forward(net, torch.ones(3, 8), samples=3)


def test_exported_and_partly_compiled_nets_are_told():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.ones(3, 8)
    with pytest.raises(UserInputError, match="It is a traced or exported graph"):
        mc_forward(torch.export.export(net.eval(), (x,)).module(), x, samples=3)
    with warnings.catch_warnings():  # newer versions of torch call it deprecated
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.script(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8)))
    with pytest.warns(UserWarning, match=r"leaves dropout off in parts compiled to TorchScript, .*reached: 0\. Keep"):
        mc_forward(nn.Sequential(script, net), x, samples=3)


def test_an_empty_batch_is_said():
    with pytest.raises(UserInputError, match="the batch has no rows"):
        mc_forward(head_net(), IMAGES[:0], samples=3)


def test_a_last_layer_of_zeros_is_named():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))
    nn.init.zeros_(net[1].weight)
    with pytest.raises(UserInputError, match=r"1\.weight is all zero, as some nets start"):
        mc_forward(net, torch.ones(3, 8), samples=5)


def test_zero_variance_is_an_error():
    class Wasted(nn.Module):
        def forward(self, x):
            F.dropout(x, 0.5, self.training)
            return x

    with pytest.raises(UserInputError, match=r"All 5 samples of Wasted are equal, although.*model#0"):
        mc_forward(Wasted(), torch.ones(3, 8), samples=5)


def test_layers_p_and_insert():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2)))
    x = torch.ones(3, 8)

    def sites(net=net, **options):
        run = MCEngine(net, samples=3, seed=0, **options)
        run(x)
        return [(site.name, site.p, site.how) for site in run.report.sites]

    assert sites() == [("0#0", 0.5, "turned on"), ("2.0#0", 0.5, "turned on")]
    assert sites(layers="2*") == [("2.0#0", 0.5, "turned on")]
    assert sites(layers=nn.Sequential) == sites()
    assert sites(layers=lambda name, module: name == "0", p=0.1) == [("0#0", 0.1, "turned on")]
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert sites(plain, insert="head", p=0.3) == [("2#0", 0.3, "inserted")]
    assert sites(plain, insert={"0": 0.2}) == [("0#0", 0.2, "inserted")]
    asleep = nn.Sequential(nn.Dropout(0.0), *plain)
    assert sites(asleep, insert="head", p=0.3) == [("3#0", 0.3, "inserted")]  # p is for what is inserted
    both = sites(asleep, insert={"1": 0.2}, p=0.4)
    assert both == [("0#0", 0.4, "turned on"), ("1#0", 0.2, "inserted")]
    with pytest.raises(UserInputError, match=r"layers='nope' matches no module of Sequential. Its modules: 0, 1, 2"):
        sites(plain, layers="nope")
    with pytest.raises(UserInputError, match="needs a probability"):
        sites(plain, insert="head")
    with pytest.raises(UserInputError, match="insert names 'nope'"):
        sites(plain, insert={"nope": 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, r"samples must be in \[1"),
        ({"samples": 2, "p": 1.0}, r"p must be in \(0, 1\)"),
        ({"samples": 2, "masks": "both"}, "masks must be one of independent, shared"),
        ({"samples": 2, "engine": "fast"}, "engine must be one of"),
        ({"samples": 2, "chunk_size": 0}, "chunk_size must be"),
        ({"samples": 2, "rows": [1, 2]}, "one key for each of the 5 rows"),
        ({"samples": 2, "rows": [-1, 0, 1, 2, 3]}, "indices from 0 on"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        mc_forward(head_net(), IMAGES, **options)


class DropsWeights(nn.Module):
    def forward(self, x):
        return x @ F.dropout(torch.ones(8, 16), 0.5, self.training)


class DropsPositions(nn.Module):
    def forward(self, x):
        return x + F.dropout(torch.ones(1, 8, 8), 0.5, self.training)


class DropsTimeFirst(nn.Module):
    def forward(self, x):
        return F.dropout(x.transpose(0, 1), 0.5, self.training).transpose(0, 1)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.net(x, x, x)[0]


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("net", [DropsWeights(), DropsPositions(), DropsTimeFirst(), Attends()])
def test_rows_are_not_mistaken_for_what_there_is_as_much_of(net, batch):
    """Equal rows under one mask are equal, and nothing but rows shares a mask, however long the other axes are."""
    x = torch.rand(1, 8, 8).expand(batch, 8, 8)
    samples = mc_forward(net, x, samples=20, seed=0, masks="shared")
    torch.testing.assert_close(samples, samples[:, :1].expand_as(samples))
    torch.testing.assert_close(samples[:, 0], mc_forward(net, x[:1], samples=20, seed=0, masks="shared")[:, 0])
    if not isinstance(net, Attends):
        alike = mc_forward(net, torch.ones(batch, 8, 8), samples=20, seed=0, masks="shared")[:, 0]
        assert not torch.equal(alike[..., 0], alike[..., 1])
        assert isinstance(net, DropsWeights) or not torch.equal(alike[:, 0], alike[:, 1])


@pytest.mark.parametrize("net", [DropsTimeFirst(), Attends()])
def test_masks_of_a_row_do_not_depend_on_how_many_come_with_it(net):
    x = torch.rand(8, 8, 8)
    whole, part = (mc_forward(net, rows, samples=5, seed=0) for rows in (x, x[:5]))
    torch.testing.assert_close(whole[:, :5], part)


def test_a_net_for_one_number_of_rows_is_sampled_all_the_same():
    def only_six(x):
        return F.dropout(x.reshape(6, 8), 0.5, training=True)

    run = MCEngine(Mechanism(only_six), samples=4, seed=0)
    assert run(ROWS).shape == (4, 6, 8)
    assert "which axes count the rows is guessed" in str(run.report)


def test_a_wrong_vectorisation_is_refused():
    """A net that fills noise in place and drops the return value: vmap cannot do that, the self-check sees it."""

    class Fills(nn.Module):
        def forward(self, x):
            noise = torch.zeros(len(x), 1)
            noise.normal_()
            return x + noise

    run = MCEngine(Fills(), samples=4)
    out = run(torch.zeros(3, 2))
    assert run.report.engine == "loop"
    assert any("vmap" in note for note in run.report.notes)
    assert (out.std(0) > 0).all()


def test_overwritten_prefix_is_recomputed():
    class Residual(nn.Module):
        def forward(self, x):
            h = torch.tanh(x)
            h += F.dropout(h, 0.5, self.training)
            return h

    run = MCEngine(Residual(), samples=50, seed=0)
    out = run(torch.ones(3, 8))
    again = run(torch.ones(3, 8))
    values = torch.tanh(torch.ones(())) * torch.tensor([1.0, 3.0])
    assert all(((out - value).abs() < 1e-6).any() for value in values)
    assert (((out - values[0]).abs() < 1e-6) | ((out - values[1]).abs() < 1e-6)).all()
    assert torch.equal(out, again)


def test_several_inputs_dicts_and_tuples():
    class Two(nn.Module):
        def forward(self, x, y, *, scale):
            h = F.dropout(x + y, 0.5, self.training) * scale
            return {"sum": h.sum(1), "both": (h, x)}

    for engine in ("vmap", "loop", "repeat"):
        out = mc_forward(
            Two(), torch.ones(3, 8), torch.ones(3, 8), samples=4, seed=0, engine=engine, kwargs={"scale": 2.0}
        )
        assert out["sum"].shape == (4, 3)
        assert out["both"][0].shape == (4, 3, 8)
        assert torch.equal(out["both"][1], torch.ones(4, 3, 8))
    picked = mc_forward(
        Two(), torch.ones(3, 8), torch.ones(3, 8), samples=4, kwargs={"scale": 1.0}, output=lambda out: out["sum"]
    )
    assert picked.shape == (4, 3)


def test_what_is_no_tensor_in_an_output_stays_as_it_is():
    class Answer(nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.extra = extra

        def forward(self, x):
            return {"logits": F.dropout(x, 0.5, self.training), "loss": None, "extra": self.extra}

    for engine in ("vmap", "loop", "repeat"):
        out = mc_forward(Answer("name"), torch.ones(5, 8), samples=4, engine=engine, chunk_size=2)
        assert (out["logits"].shape, out["loss"], out["extra"]) == ((4, 5, 8), None, "name")
    with pytest.raises(UserInputError, match=r"the model returned a float; .*output=lambda out: out\.logits"):
        mc_forward(Answer(1.5), torch.ones(5, 8), samples=4)


class Mechanism(nn.Module):
    """One call, and what only training mode brings."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *inputs):
        return self.call(*inputs)


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.LSTM(8, 5, num_layers=2, dropout=0.4, batch_first=True)

    def forward(self, x):
        out, (state, _) = self.net(x)
        return out, state


@pytest.mark.parametrize("net", [LastState(), Mechanism(lambda x: (F.dropout(x, training=True), x.mean()))])
@pytest.mark.parametrize("chunk_size", [2, 4])  # 2 is as many as there are layers
def test_outputs_without_rows_are_not_joined(net, chunk_size):
    x = torch.randn(8, 3, 8)
    with pytest.raises(UserInputError, match=rf"chunk_size={chunk_size} cuts the rows, but an output of shape"):
        mc_forward(net, x, samples=3, chunk_size=chunk_size)
    parts = mc_forward(net, x, samples=3, seed=0, chunk_size=chunk_size, output=lambda out: out[0])
    torch.testing.assert_close(parts, mc_forward(net, x, samples=3, seed=0)[0])


def test_a_net_whose_outputs_have_no_rows_is_not_cut():
    net = Mechanism(lambda x: (F.dropout(x, training=True), x.mean()))
    samples, means = mc_forward(net, torch.ones(40, 2000), samples=130, seed=0)
    assert samples.shape == (130, 40, 2000)
    assert torch.equal(means, torch.ones(130))


def test_inference_mode_autocast_and_compile():
    net = head_net().eval()
    plain = mc_forward(net, IMAGES, samples=6, seed=0)
    with torch.inference_mode():
        assert torch.equal(mc_forward(net, IMAGES, samples=6, seed=0), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mc_forward(net, IMAGES, samples=6, seed=0)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), plain, rtol=0.05, atol=0.05)
    run = MCEngine(torch.compile(net, backend="eager"), samples=6, seed=0)
    assert torch.equal(run(IMAGES), plain)
    assert "torch.compile wrapper is taken off" in str(run.report)


def test_one_sample_of_a_net_that_always_draws():
    class Vae(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape) + torch.rand(1)

    assert mc_forward(Vae(), torch.zeros(3, 2), samples=1).shape == (1, 3, 2)


def test_opaque_random_calls_are_keyed():
    class Shuffle(nn.Module):
        def forward(self, x):
            return x[:, torch.randperm(x.shape[1])]

    x = torch.arange(20.0).reshape(2, 10)
    one, two = (mc_forward(Shuffle(), x, samples=3, seed=0) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_standard_gamma", lambda x: torch.distributions.Gamma(x + 2, 1.0).sample()),
        ("_sample_dirichlet", lambda x: torch.distributions.Beta(x + 2, x + 2).sample()),
        ("binomial", lambda x: torch.binomial(torch.full_like(x, 100), torch.full_like(x, 0.5))),
        ("log_normal_", lambda x: torch.empty_like(x).log_normal_()),
        ("cauchy_", lambda x: torch.empty_like(x).cauchy_()),
        ("geometric_", lambda x: torch.empty_like(x).geometric_(0.01)),
    ],
)
def test_noise_of_every_kind_differs_from_sample_to_sample(name, call):
    """Drawn before a dropout, it must not be taken for what all samples have in common."""
    net = Mechanism(lambda x: torch.cat([call(x), F.dropout(x, 0.5, training=True)], dim=1))
    run = MCEngine(net, samples=6, seed=0)
    noise = run(ROWS)[..., :8]
    assert (noise.std(0) > 0).float().mean() > 0.9
    assert torch.equal(MCEngine(net, samples=6, seed=0)(ROWS)[..., :8], noise)
    assert [site.kind for site in run.report.sites] == [name, "dropout"]


def test_the_report_says_what_was_turned_on():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True).eval()
    run = MCEngine(layer, samples=3, seed=0)
    run(torch.ones(2, 5, 8))
    assert {(site.kind, site.how) for site in run.report.sites} == {
        ("attention dropout", "turned on"),
        ("dropout", "turned on"),
    }
    assert "self_attn#0: attention dropout, p=0.2 (turned on)" in str(run.report)


def test_samples_that_are_equal_by_chance_are_no_error():
    net = nn.Sequential(nn.Dropout(0.05), nn.Linear(2, 1))
    for seed in range(5):
        assert mc_forward(net, torch.ones(1, 2), samples=2, seed=seed).shape == (2, 1, 1)


# Calls and nets that people write less often.


ROWS = torch.linspace(-1, 1, 6 * 8).reshape(6, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu()},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(-1)},  # the first query sees nothing
        {"attn_mask": torch.linspace(-3, 3, 25).reshape(5, 5), "scale": 0.3},
        {"enable_gqa": True},
    ],
    ids=["causal", "booleans", "nothing to see", "numbers", "grouped queries"],
)
def test_attention_drops_its_weights_and_changes_nothing_else(options):
    """With the unit matrix for values the output is the weights: each is 0, or torch's own over 1 - p."""
    torch.manual_seed(0)
    query, key = torch.randn(3, 4, 5, 8), torch.randn(3, 2 if "enable_gqa" in options else 4, 5, 8)
    value = torch.eye(5).expand(*key.shape[:2], 5, 5)
    net = Mechanism(
        lambda q: F.scaled_dot_product_attention(q, key[: len(q)], value[: len(q)], dropout_p=0.5, **options)
    )
    weights = F.scaled_dot_product_attention(query, key, value, **options)
    samples = mc_forward(net, query, samples=40, seed=0)
    dropped = samples == 0
    torch.testing.assert_close(torch.where(dropped, weights / 0.5, samples), (weights / 0.5).expand_as(samples))
    assert dropped[:, weights > 0].float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.dropout(input=x, p=0.5, train=True),
        lambda x: F.dropout(input=x, p=0.5),
        lambda x: torch.bernoulli(input=torch.full_like(x, 0.5)) * x * 2,
        lambda x: (torch.rand_like(input=x) < 0.5) * x * 2,
        lambda x: (torch.rand(size=x.shape) < 0.5) * x * 2,
        lambda x: F.rrelu(input=-x.abs(), lower=0.0, upper=1.0, training=True).sign() * x * 2 * (torch.rand(()) < 0.5),
    ],
    ids=["torch.dropout", "F.dropout", "bernoulli", "rand_like", "rand", "rrelu"],
)
def test_arguments_may_be_named(call):
    samples = mc_forward(Mechanism(call), ROWS, samples=60, seed=0)
    assert ((samples.abs() < 1e-6) | ((samples.abs() - 2 * ROWS.abs()).abs() < 1e-6)).all()
    assert (samples == 0).float().mean() == pytest.approx(0.5, abs=0.2)


def test_what_rests_says_what_it_says_in_eval_mode():
    """Only the Dropout is chosen: slopes, attention and recurrent layers before it give their plain numbers."""

    class Resting(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.drop = first, nn.Dropout(0.5)

        def forward(self, x):
            out = self.first(x)
            return self.drop(out[0] if isinstance(out, tuple) else out)

    x = ROWS.reshape(2, 3, 8)
    for first in (nn.RReLU(0.1, 0.9), nn.LSTM(8, 4, num_layers=2, dropout=0.4), nn.GRU(8, 4), nn.RReLU(0.3, 0.3)):
        net = Resting(first).eval()
        plain = net(x)
        samples = mc_forward(net, x, samples=20, seed=0, layers=["drop"])
        assert ((samples == 0) | torch.isclose(samples, 2 * plain)).all()
    constant = Resting(nn.RReLU(0.3, 0.3)).eval()
    assert ((samples == 0) | torch.isclose(mc_forward(constant, x, samples=20, seed=0), 2 * constant(x))).any()


def test_everything_may_be_dropped():
    """AlphaDropout(1) gives zeros, as in torch."""
    net = nn.Sequential(nn.AlphaDropout(1.0), nn.Linear(8, 3), nn.Dropout(0.5)).eval()
    samples = mc_forward(net, ROWS, samples=10, seed=0)
    assert torch.equal(samples.amax(dim=(0, 1)).clamp(min=0), (2 * net[1].bias).clamp(min=0))


class Writes(nn.Module):
    """Writes over its input, which vmap can only do if every sample has its own."""

    def forward(self, x, *, shift):
        x[:, 0] = F.dropout(x, 0.5, training=True)[:, 1] + shift
        return x


class Adds(nn.Module):
    def forward(self, x):
        x += F.dropout(x, 0.5, training=True)
        return x


@pytest.mark.parametrize("engine", ["auto", "loop", "lifted", "repeat"])
def test_a_net_that_adds_to_its_input_starts_anew_for_each_sample(engine):
    run, x = MCEngine(Adds(), samples=6, seed=0, engine=engine), torch.ones(2, 5)
    for _ in range(2):
        assert set(run(x).unique().tolist()) == {1.0, 3.0}
    assert torch.equal(x, torch.ones(2, 5))


def test_lifted_gives_each_sample_an_input_of_its_own():
    before, options = ROWS.clone(), {"samples": 4, "seed": 3, "kwargs": {"shift": torch.ones(())}}
    loop = mc_forward(Writes(), ROWS, engine="loop", **options)
    torch.testing.assert_close(mc_forward(Writes(), ROWS, engine="lifted", **options), loop)
    assert torch.equal(ROWS, before)
    with pytest.raises(UserInputError, match=r"engine='vmap' does not suit Writes: vmap: .*Use 'auto'"):
        mc_forward(Writes(), ROWS, engine="vmap", **options)


@pytest.mark.parametrize(
    ("engine", "call", "reason"),
    [
        ("repeat", lambda x: F.dropout(x, training=True).mean(), "an output does not have one entry per row"),
        ("repeat", lambda x: x @ F.dropout(torch.ones(8, 3), training=True), r"tensor without rows \(a weight\?\)"),
        ("repeat", lambda x: x[:, torch.randperm(8)], "randperm is drawn for one sample at a time"),
        ("vmap", lambda x: x * float(F.dropout(x, training=True).sum()), "vmap: .*item"),
    ],
)
def test_an_engine_that_does_not_suit_is_refused_with_the_reason(engine, call, reason):
    with pytest.raises(UserInputError, match=f"engine='{engine}' does not suit Mechanism: .*{reason}"):
        mc_forward(Mechanism(call), ROWS, samples=3, engine=engine)


def test_inputs_without_rows():
    """A net that takes a number: there is no axis of rows, so nothing is cut, filled or repeated."""
    net = Mechanism(lambda x: F.dropout(x * torch.ones(40), 0.5, training=True))
    samples = mc_forward(net, torch.tensor(3.0), samples=5, seed=0, chunk_size=1)
    assert samples.shape == (5, 40)
    assert set(samples.unique().tolist()) == {0.0, 6.0}
    with pytest.raises(UserInputError, match="repeat: the size of the batch is unknown"):
        mc_forward(net, torch.tensor(3.0), samples=5, engine="repeat")


class Hides(nn.Module):
    """Computes where no torch function sees it, on a tensor that nobody holds afterwards."""

    def forward(self, x):
        h = torch.tanh(x)
        with torch._C.DisableTorchFunction():
            h = h * 2
        return F.dropout(h, 0.5, training=True)


class Grows(nn.Module):
    """Makes one more call from its eighth pass on, or one fewer."""

    def __init__(self, more):
        super().__init__()
        self.passes, self.more = 0, more

    def forward(self, x):
        self.passes += 1
        x = torch.tanh(x)
        if (self.passes > 7) == self.more:
            x = x + 0
        return F.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    ("net", "note"),
    [
        (Hides(), "some of its computation is hidden from torch functions"),
        (Grows(True), "could not be replayed later on: the calls before the first dropout differ"),
        (Grows(False), "could not be replayed later on: the calls before the first dropout differ"),
    ],
    ids=["hidden", "a call more", "a call fewer"],
)
def test_a_prefix_that_cannot_be_replayed_is_computed_for_every_sample(net, note):
    run = MCEngine(net, samples=3, seed=0, engine="loop")
    for _ in range(2):
        samples = run(ROWS)
        plain = torch.tanh(ROWS) * (2 if isinstance(net, Hides) else 1)
        assert ((samples == 0) | torch.isclose(samples, 2 * plain)).all()
    assert (samples == 0).any()
    assert not run.report.prefix_shared
    assert note in str(run.report)


class Branch(nn.Module):
    """Noise and, in training mode, something that prediction has no use for."""

    def __init__(self, extra):
        super().__init__()
        self.extra, self.noise = extra, Noise()

    def forward(self, x):
        x = self.noise(x)
        return self.extra(x) if self.training else x


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


def demands_targets(x):
    raise ValueError("where are the targets?")


@pytest.mark.parametrize("extra", [demands_targets, lambda x: (x, x), lambda x: x[:, :2]])
def test_only_modules_that_draw_are_put_into_training_mode(extra):
    run = MCEngine(Branch(extra), samples=200, seed=0)
    samples = run(ROWS)
    assert samples.shape == (200, 6, 8)
    assert samples.std(0).mean() == pytest.approx(1, abs=0.05)
    assert [site.name for site in run.report.sites] == ["noise#0"]


def test_a_small_batch_is_filled_up_for_the_net_and_cut_again():
    seen = []
    net = Mechanism(lambda x: seen.append(len(x)) or F.dropout(x, 0.5, training=True))
    samples = MCEngine(net, samples=3, seed=0, engine="loop", min_rows=4)(ROWS[:1])
    assert min(seen) == 4
    assert torch.equal(samples, MCEngine(net, samples=3, seed=0, engine="loop")(ROWS[:1]))


def test_head_of_a_net_without_layers_is_said():
    with pytest.raises(UserInputError, match=r"looks for the last Linear or Conv layer, and ReLU has none"):
        mc_forward(nn.ReLU(), ROWS, samples=2, insert="head", p=0.1)


def test_distance_of_two_outputs():
    one = (torch.tensor([1.0, torch.nan]), torch.empty(0))
    assert distance(one, (torch.tensor([1.0, torch.nan]), torch.empty(0))) == 0
    assert distance(one, (torch.tensor([2.0, torch.nan]), torch.empty(0))) == 1
    assert distance(one, (torch.tensor([1.0, 0.0]), torch.empty(0))) == float("inf")
    assert distance(one, (torch.tensor([1.0]), torch.empty(0))) == float("inf")


class NamedOnly(nn.Module):
    """Takes its inputs by name only, one of them called as an option of `mc_forward` is."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, **batch):
        """Return the masked inputs, dropped out, times what came as ``p``."""
        return self.drop(batch["input_ids"] * batch["attention_mask"]) * batch.get("p", 1.0)


def test_inputs_are_given_by_name():
    """``**batch`` gives the samples that ``kwargs=batch`` gives; ``kwargs`` also reaches names of options."""
    batch = {"input_ids": torch.ones(3, 8), "attention_mask": torch.ones(3, 8)}
    options = {"samples": 4, "seed": 0}
    named = mc_forward(NamedOnly(), **options, **batch)
    assert torch.equal(named, mc_forward(NamedOnly(), **options, kwargs=batch))
    doubled = mc_forward(NamedOnly(), **options, **batch, kwargs={"p": 2.0})
    assert named.shape == (4, 3, 8)
    assert torch.equal(doubled, 2 * named)


def test_an_input_given_twice_is_refused():
    """Neither of two values for one input wins silently."""
    with pytest.raises(UserInputError, match="'attention_mask' is both in kwargs and named"):
        mc_forward(
            NamedOnly(),
            samples=4,
            input_ids=torch.ones(3, 8),
            attention_mask=torch.ones(3, 8),
            kwargs={"attention_mask": torch.ones(3, 8)},
        )
