"""Client transforms: rotations that only move pixels, noise of the stated size, the same transform in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from hetfl.data import (
    IID,
    ClientTransform,
    Digits,
    Dirichlet,
    FeatureNoise,
    FederatedDataModule,
    ImageTransform,
    LabelShards,
    RotationGroups,
    TensorData,
)
from hetfl.data.rotation_groups import rotated
from hetfl.errors import ConfigurationError

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def ready(**arguments: Any) -> FederatedDataModule:
    module = Digits(**{"num_clients": 12, **arguments})
    module.setup("fit")
    return module


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Marked(ClientTransform):
    """Writes the client's number into its samples."""

    def apply(self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator) -> Tensor:
        return torch.full_like(inputs, client)

    def describe(self, client: int, num_clients: int) -> str:
        return f"{client}"


# --- in the data module ---


def test_every_sample_is_transformed_by_its_owner() -> None:
    module = ready(client_transform=Marked(), partitioner=Dirichlet(0.5))
    for client in range(12):
        for part in (module.client_data(client), module.client_data(client, "test")):
            assert (part.inputs == client).all()
    (test,) = list(module.test_dataloader()[0])
    assert torch.equal(test.inputs[:, 0, 0, 0].long(), test.owner)
    held_out = next(iter(module.val_dataloader()[0]))
    assert torch.equal(held_out.inputs[:, 0, 0, 0].long(), held_out.owner)
    assert held_out.owner.min() >= 0


def test_a_client_transform_does_not_change_the_partition() -> None:
    plain, marked = (ready(client_transform=transform, partitioner=Dirichlet(0.5)) for transform in (None, Marked()))
    assert plain.sizes == marked.sizes
    for client in range(12):
        assert torch.equal(plain.client_data(client).targets, marked.client_data(client).targets)
        assert torch.equal(plain.client_data(client, "test").targets, marked.client_data(client, "test").targets)
    assert torch.equal(plain.resident.validation.targets, marked.resident.validation.targets)
    assert (plain.resident.validation_owner == -1).all()


def test_held_out_samples_are_transformed_by_clients_with_their_class() -> None:
    module = ready(client_transform=Marked(), num_clients=50, partitioner=LabelShards(2))
    held_out = module.resident
    for target, owner in zip(held_out.validation.targets.tolist(), held_out.validation_owner.tolist(), strict=True):
        assert module.labels(owner)[target]


def test_samples_without_a_matching_client_get_a_random_clients_transform_and_no_owner() -> None:
    module = TensorData(
        train_inputs=torch.zeros(60, 1), train_targets=torch.arange(60) % 3, test_inputs=torch.full((400, 1), -1.0),
        test_targets=torch.full((400,), 4), num_clients=3, client_transform=Marked(), val_fraction=0.0,
    )  # fmt: skip
    module.setup()
    (test,) = list(module.test_dataloader()[0])
    assert (test.owner == -1).all()
    assert (test.inputs.flatten().long().bincount() - 400 / 3).abs().max() < 50


def test_the_transformed_data_is_a_function_of_the_seed() -> None:
    first, again, other = (ready(client_transform=FeatureNoise(0.3), seed=seed) for seed in (1, 1, 2))
    for client in range(12):
        for split in SPLITS:
            one, two = first.client_data(client, split), again.client_data(client, split)
            assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(first.resident.validation.inputs, again.resident.validation.inputs)
    assert not torch.equal(first.client_data(5).inputs[:5], other.client_data(5).inputs[:5])


def test_a_transform_that_changes_shapes_is_refused() -> None:
    class Cutting(Marked):
        def apply(self, inputs: Tensor, *rest: Any) -> Tensor:
            return inputs[..., 1:]

    with pytest.raises(ConfigurationError, match=r"from Cutting but got torch.uint8 .* for client 0"):
        ready(client_transform=Cutting())


# --- rotation groups ---


def test_quarter_turns_move_pixels_and_keep_their_values() -> None:
    batch = images(4, 3, 7, 7)
    sources: dict[int, Callable[[int, int], tuple[int, int]]] = {
        0: lambda y, x: (y, x),
        90: lambda y, x: (x, 6 - y),
        180: lambda y, x: (6 - y, 6 - x),
        270: lambda y, x: (6 - x, y),
    }
    for angle, source in sources.items():
        for turned in (rotated(batch, angle), rotated(batch, angle - 360)):
            assert turned.dtype == torch.uint8
            for y in range(7):
                for x in range(7):
                    assert torch.equal(turned[:, :, y, x], batch[:, :, source(y, x)[0], source(y, x)[1]])


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0])
def test_quarter_turns_have_torchvisions_direction(angle: float) -> None:
    batch = images(2, 1, 8, 8)
    assert torch.equal(rotated(batch, angle), rotate(batch, angle, interpolation=InterpolationMode.NEAREST))


def test_other_angles_equal_torchvisions_interpolated_rotation() -> None:
    batch = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    batch[:, :, 10, 14:] = 255  # a line that points to the right
    turned = rotated(batch, 45)
    assert turned.dtype == torch.uint8
    assert torch.equal(turned, rotate(batch, 45, interpolation=InterpolationMode.BILINEAR))
    up, down = turned[0, 0, :10, 11:].sum(), turned[0, 0, 11:, :].sum()
    assert up > 500
    assert down == 0


@pytest.mark.parametrize("num_clients", [4, 10, 50, 101])
def test_rotation_groups_have_equal_sizes_and_are_described(num_clients: int) -> None:
    transform = RotationGroups([0, 90, 180, 270])
    groups = transform.groups(num_clients)
    sizes = torch.tensor(groups).bincount(minlength=4)
    assert len(groups) == num_clients
    assert sizes.max() - sizes.min() <= 1
    assert groups == RotationGroups([0, 90, 180, 270]).groups(num_clients)
    descriptions = [transform.describe(client, num_clients) for client in range(num_clients)]
    assert descriptions == [("0°", "90°", "180°", "270°")[group] for group in groups]


def test_rotation_groups_are_independent_of_client_order() -> None:
    groups = torch.tensor(RotationGroups([0, 90]).groups(1000))
    for other in (torch.arange(1000) // 500, torch.arange(1000) % 2, torch.arange(1000) // 100 % 2):
        assert abs(int((groups == other).sum()) - 500) < 80  # five standard deviations


def test_client_images_are_rotated_by_their_groups_angle() -> None:
    plain, turned = ready(), ready(client_transform=RotationGroups([0, 90, 180, 270]))
    transform = turned.client_transform
    assert isinstance(transform, RotationGroups)
    groups = transform.groups(12)
    for client, group in enumerate(groups):
        for split in SPLITS:
            before, after = plain.client_data(client, split), turned.client_data(client, split)
            assert torch.equal(after.inputs, torch.rot90(before.inputs, group, (2, 3)))
    owner = turned.resident.test_owner
    share = torch.tensor(groups)[owner[owner >= 0]].bincount() / len(owner)
    assert (share - 0.25).abs().max() < 0.05  # the global test set has the clients' rotations


@pytest.mark.parametrize("angles", [[], [float("nan")], [0.0, float("inf")]])
def test_wrong_angles_are_refused(angles: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="Expected finite angles, one per group"):
        RotationGroups(angles)


def test_inputs_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Expected square images for a rotation by 90° .* but got \(4, 6\)"):
        rotated(images(2, 1, 4, 6), 90)
    assert rotated(images(2, 1, 4, 6), 180).shape == (2, 1, 4, 6)
    with pytest.raises(ConfigurationError, match="at least 4 clients, one per angle .* but got 3"):
        ready(num_clients=3, client_transform=RotationGroups())
    table = TensorData(
        train_inputs=torch.zeros(20, 4), train_targets=torch.arange(20) % 2, test_inputs=torch.zeros(8, 4),
        test_targets=torch.arange(8) % 2, num_clients=2, client_transform=RotationGroups([0, 90]),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="Expected images .* to rotate .* but got"):
        table.setup()


# --- noise ---


@pytest.mark.parametrize(("unit", "raw"), [(255.0, torch.uint8), (1.0, torch.float32)])
def test_noise_has_the_standard_deviation_of_the_formula(unit: float, raw: torch.dtype) -> None:
    transform, num_clients, sigma = FeatureNoise(0.4), 5, 0.4
    inputs = torch.full((200, 1, 20, 20), 3).to(raw)
    for client in range(num_clients):
        seen = transform.apply(inputs, client, num_clients, unit, torch.Generator().manual_seed(client))
        noise = (seen - 3) / unit
        level = sigma * client / (num_clients - 1)
        assert transform.level(client, num_clients) == pytest.approx(level)
        if client == 0:
            assert (noise == 0).all()
        else:
            # 80,000 draws: the standard deviation is known to 0.25 %, the mean to level / 280.
            assert float(noise.std()) == pytest.approx(level, rel=0.012)
            assert abs(float(noise.mean())) < level / 56
    assert (inputs == 3).all()


def test_noise_on_digits_is_in_units_of_white_and_not_clipped() -> None:
    plain, noisy = ready(), ready(client_transform=FeatureNoise(0.5))
    assert isinstance(noisy.transform, ImageTransform)
    for split in SPLITS:
        before, after = plain.client_data(11, split), noisy.client_data(11, split)
        noise = (after.inputs - before.inputs) / 16
        assert float(noise.std()) == pytest.approx(0.5, rel=0.08)
        assert after.inputs.min() < 0
    assert torch.equal(noisy.client_data(0).inputs, plain.client_data(0).inputs.float())
    normalised = noisy.transform.eval(noisy.client_data(11).inputs) - plain.transform.eval(plain.client_data(11).inputs)
    assert float(normalised.std()) == pytest.approx(0.5 / 0.3760, rel=0.06)


def test_training_and_test_noise_are_different_draws() -> None:
    zeros = TensorData(
        train_inputs=torch.zeros(40, 6), train_targets=torch.arange(40) % 2, test_inputs=torch.zeros(40, 6),
        test_targets=torch.arange(40) % 2, num_clients=2, client_transform=FeatureNoise(1.0), partitioner=IID(),
    )  # fmt: skip
    zeros.setup()
    rows = torch.cat(
        [zeros.client_data(1).inputs, zeros.client_data(1, "test").inputs, zeros.resident.validation.inputs]
    )
    rows = rows[rows.abs().sum(dim=1) > 0]
    assert len(rows.unique(dim=0)) == len(rows) > 30


def test_a_single_client_has_no_noise() -> None:
    assert torch.equal(
        FeatureNoise(2.0).apply(images(2, 1, 4, 4), 0, 1, 255.0, torch.Generator()), images(2, 1, 4, 4).float()
    )


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_wrong_noise_levels_are_refused(sigma: float) -> None:
    with pytest.raises(ConfigurationError, match="Expected a finite sigma >= 0"):
        FeatureNoise(sigma)


def test_float_images_are_refused_as_raw_images() -> None:
    module = TensorData(
        train_inputs=torch.rand(20, 1, 4, 4), train_targets=torch.arange(20) % 2, test_inputs=torch.rand(8, 1, 4, 4),
        test_targets=torch.arange(8) % 2, num_clients=2, transform=ImageTransform((0.5,), (0.5,)),
    )  # fmt: skip
    with pytest.raises(
        ConfigurationError, match="Expected uint8 images for ImageTransform but the data has torch.float32"
    ):
        module.setup()


def test_every_data_set_accepts_a_client_transform() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
    angles = {"class_path": "hetfl.data.RotationGroups", "init_args": {"angles": [0, 180]}}
    arguments: dict[str, dict[str, Any]] = {
        "Digits": {}, "MNIST": {}, "CIFAR10": {}, "ImageFolder": {"root": "."}, "CSVData": {"path": "a", "target": "b"},
        "HuggingFaceData": {"path": "a", "inputs": "b", "target": "c"},
    }  # fmt: skip
    for name, options in arguments.items():
        given = {"class_path": f"hetfl.data.{name}", "init_args": {**options, "client_transform": angles}}
        module = parser.instantiate(parser.parse_object({"data": given})).data
        assert module.client_transform.angles == (0, 180)
