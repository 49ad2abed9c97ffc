"""bf16 against fp32 for every registered head; compiled heads against plain ones."""

import logging

import pytest
import torch
from torch import nn

from mil import precision
from mil.loop import Loop
from mil.precision import CompileError, Forward, check_compiled
from mil.train import fit
from tests.mil_helpers import make_world
from tests.test_head_contract import bag_for, contract_config, dims_of, each_head, make

CLOSE = 0.02  # of the loss, or of 1; bf16 has 8 bits: each rounding is up to 0.004
# Cosine of the two gradients, all parameters together. Most are above 0.98; where a maximum chooses among the segments
# of an untrained head, another one may be the highest.
LIKE = 0.75


def learnt(head, bag, chosen):
    """Scores, losses and the gradient of every parameter that one reaches."""
    head.zero_grad(set_to_none=True)
    out = Forward(head, chosen)(bag)
    terms = head.loss(out, bag)
    torch.stack(list(terms.values())).sum().backward()
    gradients = {n: p.grad for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    return out, {n: float(v.detach()) for n, v in terms.items()}, gradients


@each_head
def test_in_bf16_losses_and_gradients_are_nearly_those_of_fp32(name, variant):
    head, bag = make(name, variant).eval(), bag_for(name, crops=2)
    full, terms, wanted = learnt(head, bag, "fp32")
    low, found, gradients = learnt(head, bag, "bf16")
    assert torch.equal(full.scores, head(bag).scores)
    assert not torch.equal(full.scores, low.scores)  # it was bf16
    assert (full.scores - low.scores).abs().max() < 0.02
    assert found == pytest.approx(terms, rel=CLOSE, abs=CLOSE)
    # what a softmax takes away again has a gradient of nothing but rounding
    assert {n for n, g in wanted.items() if g.abs().max() > 1e-6} <= gradients.keys() <= wanted.keys()
    a, b = (torch.cat([g[n].flatten() for n in gradients]) for g in (wanted, gradients))
    assert nn.functional.cosine_similarity(a, b, dim=0) > LIKE

    head.train()
    low, _, gradients = learnt(head, bag, "bf16")
    kinds = {t.dtype for t in (low.scores, *low.aux.values(), *gradients.values(), *head.state_dict().values())}
    assert not [k for k in kinds if k.is_floating_point and k != torch.float32]
    assert all(torch.isfinite(x).all() for x in head.state_dict().values())


def test_frozen_weights_are_those_of_then():
    head, bag = make("hlnet").eval(), bag_for("hlnet")
    forward, live = Forward(head, "bf16").freeze(), Forward(head, "bf16")
    before = live(bag).scores
    assert torch.equal(forward(bag).scores, before)
    with torch.no_grad():
        head.classifier.bias += 1
    assert torch.equal(forward(bag).scores, before)
    assert torch.equal(forward.freeze()(bag).scores, live(bag).scores)
    assert not torch.equal(live(bag).scores, before)


def test_layers_see_bf16_and_normalisations_keep_their_weights():
    head, seen = make("rtfm").train(), {}
    for name, layer in head.named_modules():
        if isinstance(layer, nn.Linear | nn.BatchNorm1d):
            layer.register_forward_pre_hook(
                lambda m, args, n=name: seen.update({n: (args[0].dtype, m.weight.dtype, type(m))})
            )
    Forward(head, "bf16")(bag_for("rtfm"))
    assert len(seen) == 8
    for name, (given, own, kind) in seen.items():
        last = name == "score.6"  # its scores would have 8 bits
        assert given == torch.bfloat16
        assert own == (torch.float32 if kind is nn.BatchNorm1d or last else torch.bfloat16)
    assert head.score[0].weight.dtype == torch.float32


def test_a_run_in_bf16_resumes_to_the_same_bytes_and_is_not_that_of_fp32(tmp_path, monkeypatch):
    name = "urdmu"
    world = make_world(tmp_path, train=4, test=1, modalities=tuple(dims_of(name)))
    low, full = (contract_config(name, {}, steps=4, save_every=2, pairs=2, precision=p) for p in ("bf16", "fp32"))
    straight, broken, other = (world.run(n, c) for n, c in (("straight", low), ("broken", low), ("other", full)))
    fit(low, world.train, world.stores, straight)
    fit(full, world.train, world.stores, other)
    update = Loop.update

    def stop(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(Loop, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(low, world.train, world.stores, broken)
    monkeypatch.undo()
    fit(low, world.train, world.stores, broken, resume=True)
    weights = [r.checkpoint.with_suffix(".safetensors").read_bytes() for r in (straight, broken, other)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("fast", [True, False])
def test_where_bf16_is_emulated_it_says_so(fast, caplog, monkeypatch):
    monkeypatch.setattr(precision, "bf16_is_fast", lambda device: fast)
    with caplog.at_level(logging.WARNING):
        Forward(make("ranking"), "bf16")
    assert ("no bf16 instructions" in caplog.text) != fast


def test_a_torch_without_the_library_that_knows_has_no_fast_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision.bf16_is_fast.__wrapped__("cpu")


def test_norms_of_our_own_keep_their_weights():
    head = make("mgfn")
    kept = {n for n, _ in head.named_parameters() if n.endswith((".g", ".b"))}
    assert kept
    assert not kept & Forward(head, "bf16")._cast


def test_what_cannot_be_compiled_is_refused_in_words():
    with pytest.raises(CompileError, match=r"graphs needs a CUDA device, this is cpu; use --compile kernels"):
        Forward(make("ranking"), "fp32", "graphs")
    check_compiled("graphs", "cuda:1")
    check_compiled("kernels", "cpu")
    with pytest.raises(ValueError, match="precision is fp32 or bf16, got 'fp16'"):
        Forward(make("ranking"), "fp16")


def test_a_compiled_head_draws_the_same_dropout_and_gives_the_same_gradients():
    """With the compiler's front end alone: what it hands to a back end is the head's own sequence of operations."""
    head, bag = make("ranking", {"dropout": 0.5}).train(), bag_for("ranking")
    found = []
    for compiled in ("none", "kernels"):
        torch.manual_seed(3)
        head.zero_grad()
        out = Forward(head, "fp32", compiled, backend="eager")(bag)
        sum(head.loss(out, bag).values()).backward()
        found.append([out.scores.detach(), *(p.grad.clone() for p in head.parameters()), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].any()

    def broken(graph, inputs):
        raise RuntimeError("no compiler found")

    with pytest.raises(CompileError, match=r"torch.compile failed \(.*no compiler found.*set train.compile=none"):
        Forward(make("ranking"), "fp32", "kernels", backend=broken)(bag)


@each_head
def test_scores_in_bf16_are_not_of_8_bits(name, variant):
    """The last layer computes in fp32: else scores would have ties, and logarithms of 1 - score steps."""
    head, bag = make(name, variant).eval(), bag_for(name, crops=1)
    scores = Forward(head, "bf16")(bag).scores[bag.mask]
    assert (scores.to(torch.bfloat16).float() != scores).float().mean() > 0.9
