"""Training tools of the PyTorch world take our VAEs for what they know, with the gradients of diffusers."""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers.models.autoencoders.vae import Decoder
from diffusers.training_utils import EMAModel
from support.configs import relative_l2
from support.pipelines import make_vae
from support.training_pairs import PROCESSES, SUBJECTS, distance, gradients, loss, one_rank, pictures, step, wide
from torch import nn

GRADIENTS = 1e-6
"""The largest relative L2 distance of gradients."""

each_subject = pytest.mark.parametrize("subject", SUBJECTS)


def decoded(vae: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(torch.ones(1, 4, 8, 8, dtype=vae.dtype)).sample


@each_subject
def test_one_step_has_the_gradients_of_diffusers(subject):
    assert distance(step(wide(SUBJECTS[subject]), pictures()), step(wide(make_vae), pictures())) <= GRADIENTS


@pytest.fixture
def accelerator():
    yield accelerate.Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@each_subject
def test_one_step_in_float32_is_no_less_accurate_than_in_diffusers(subject):
    exact, x = step(wide(make_vae), pictures()), pictures(dtype=torch.float32)
    assert distance(step(SUBJECTS[subject](), x), exact) <= 1.5 * distance(step(make_vae(), x), exact)


@each_subject
def test_accelerate_prepares_a_vae_and_trains_it_one_step(subject, accelerator):
    def trained(vae):
        vae, optimizer = accelerator.prepare(vae, torch.optim.SGD(vae.parameters(), lr=1e-2))
        accelerator.backward(loss(vae, pictures()))
        found = gradients(vae)
        optimizer.step()
        optimizer.zero_grad()
        return found, decoded(accelerator.unwrap_model(vae))

    ours, theirs = trained(wide(SUBJECTS[subject])), trained(wide(make_vae))
    assert distance(ours[0], theirs[0]) <= GRADIENTS
    assert relative_l2(ours[1], theirs[1]) <= 2e-6
    assert relative_l2(theirs[1], decoded(make_vae())) > 1e-3  # the step shows


def test_two_processes_train_one_step_with_the_gradients_of_diffusers(tmp_path):
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=PROCESSES)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    whole = step(wide(make_vae), pictures(PROCESSES))
    for subject in SUBJECTS:
        for found in ranks:
            assert distance(found[subject], found["diffusers"]) <= GRADIENTS, subject
            assert distance(found[subject], whole) <= GRADIENTS, subject


@each_subject
def test_an_average_of_weights_is_taken_and_put_in(subject):
    """What the VAE decodes afterwards is what diffusers decodes with the same average."""

    def averaged(vae):
        decoded(vae)  # whatever a first call prepares has to follow the weights
        average = EMAModel(vae.parameters(), decay=0.5, min_decay=0.5)
        optimizer = torch.optim.SGD(vae.parameters(), lr=1e-2)
        for _ in range(2):  # the first average is of one
            optimizer.zero_grad()
            loss(vae, pictures()).backward()
            optimizer.step()
            average.step(vae.parameters())
        trained = decoded(vae)
        average.store(vae.parameters())
        average.copy_to(vae.parameters())
        mean = decoded(vae)
        average.restore(vae.parameters())
        return trained, mean, decoded(vae)

    ours, theirs = averaged(wide(SUBJECTS[subject])), averaged(wide(make_vae))
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_l2(found, expected) <= 5e-6
    assert relative_l2(theirs[0], theirs[1]) > 1e-3
    assert torch.equal(ours[0], ours[2])


@each_subject
def test_a_scaler_of_gradients_takes_one_step(subject):
    def scaled(vae):
        scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=256.0), torch.optim.SGD(vae.parameters(), lr=1e-2)
        scaler.scale(loss(vae, pictures())).backward()
        scaler.unscale_(optimizer)
        found = gradients(vae)
        scaler.step(optimizer)
        scaler.update()
        return found, decoded(vae)

    ours, theirs = scaled(wide(SUBJECTS[subject])), scaled(wide(make_vae))
    assert distance(ours[0], theirs[0]) <= GRADIENTS
    assert relative_l2(ours[1], theirs[1]) <= 2e-6


@each_subject
@pytest.mark.parametrize("grad", [True, False])
def test_autocast_costs_no_more_than_in_diffusers(subject, grad):
    """Under autocast to bfloat16, against float64."""

    def cast(vae):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            return vae(pictures(dtype=torch.float32)).sample.detach().float()

    ours, theirs, exact = cast(SUBJECTS[subject]()), cast(make_vae()), wide(make_vae)(pictures()).sample.detach()
    assert relative_l2(ours, exact) <= 1.5 * relative_l2(theirs, exact)
    assert relative_l2(ours, theirs) <= 2 * relative_l2(theirs, exact)
    assert relative_l2(theirs, exact) > 1e-4  # autocast was on


@each_subject
def test_gradients_under_autocast_are_close_to_those_of_diffusers(subject):
    def cast(vae):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(vae, pictures(dtype=torch.float32))
        value.backward()
        return gradients(vae)

    exact, theirs = step(wide(make_vae), pictures()), cast(make_vae())
    assert distance(cast(SUBJECTS[subject]()), exact) <= 1.5 * distance(theirs, exact)


def kept(vae: nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and how many bytes of activations were kept for them."""
    total, weights = [0], {parameter.data_ptr() for parameter in vae.parameters()}

    def pack(tensor):
        total[0] += 0 if tensor.data_ptr() in weights else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(vae, pictures())
    value.backward()
    return gradients(vae), total[0]


@each_subject
def test_gradient_checkpointing_keeps_the_gradients_and_less_memory(subject):
    vae, plain = wide(SUBJECTS[subject]), wide(SUBJECTS[subject])
    for each in (vae, plain):
        each.train()
    vae.enable_gradient_checkpointing()
    (found, less), (expected, more) = kept(vae), kept(plain)
    assert distance(found, expected) <= GRADIENTS
    assert less < 0.6 * more


@each_subject
def test_inference_follows_weights_that_change_in_place(subject):
    vae, theirs = SUBJECTS[subject](), make_vae()
    first = decoded(vae)
    with torch.no_grad():
        for each in (vae, theirs):
            for parameter in each.parameters():
                parameter.mul_(1.1)
    assert relative_l2(decoded(vae), decoded(theirs)) <= 2e-6
    vae.load_state_dict(make_vae().state_dict())
    assert torch.equal(decoded(vae), first)


@each_subject
def test_no_subject_is_computed_by_diffusers(subject, monkeypatch):
    """So that no test here compares diffusers with itself."""

    def forbidden(self, *inputs):
        raise AssertionError("diffusers' decoder was called")

    monkeypatch.setattr(Decoder, "forward", forbidden)
    decoded(SUBJECTS[subject]())
    loss(wide(SUBJECTS[subject]), pictures())
