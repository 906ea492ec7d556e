"""The same policy, faster: fixed shapes, one CUDA graph for each, pictures prepared on the device, no language head.

At batch 1 a 7 B policy is a thousand small kernels, and launching them costs as much as running them. Prompts are
padded to the next of a few lengths, so that few shapes occur; for each, images, words and state go through one recorded
graph, from resizing to features. The action head follows eagerly: it is small, and may draw noise or ask again.

What is special: nothing is converted. The weights are those of the policy it was made from, and so are the chunks, up
to the rounding of padded attention (1e-5 in float32).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vla.core.errors import GrasplineError
from vla.policies.backbones.vlm import VLMBackbone, Words
from vla.policies.interfaces import Features
from vla.policies.preprocess import jpeg_round_trip
from vla.policies.vla import VLAPolicy

WARM_UP = 3  # runs before a capture, in which libraries allocate and choose kernels


def accelerate(
    policy: VLAPolicy,
    *,
    buckets: Sequence[int] = (32, 48, 64),
    compile: bool = False,
    graphs: bool = True,
    jpeg: bool = True,
) -> "FastPolicy":
    """A policy that acts as `policy` does, with the same weights. `policy` itself stays as it is.

    The first chunk of each shape takes long (seconds; a minute with `compile`). Set `compute_batch` on the result to
    compute several observations together.

    Args:
        policy: on its device, built on vla/policies/backbones/vlm.py.
        buckets: lengths in tokens, rising, to the next of which prompts are padded. A prompt of just such a length
            needs no mask, which allows faster attention; one that is longer than all stays as long as it is.
        compile: whether torch.compile fuses what lies between the matrix products of each transformer layer.
        graphs: whether CUDA graphs are recorded; on another device there are none.
        jpeg: False skips the JPEG round trip, if the policy has one: milliseconds on the processor for pictures that
            differ a little from those of training.

    Raises:
        GrasplineError: the policy has another backbone, or buckets are not rising.
    """
    if not isinstance(policy.backbone, VLMBackbone):
        raise GrasplineError(
            f"fast inference needs a policy with a language model (openvla_oft, smol), not a {policy.preset}"
        )
    if list(buckets) != sorted(set(buckets)) or min(buckets, default=1) < 1:
        raise GrasplineError(f"buckets is {list(buckets)}, expected rising numbers of tokens")
    fast = FastPolicy(policy, buckets=buckets, jpeg=jpeg)
    fast.captures = graphs and policy.device.type == "cuda"
    if compile:
        _compile_layers(fast.backbone)
    return fast.eval()


class FastPolicy(VLAPolicy):
    """What `accelerate` returns. It acts; it cannot be trained.

    Weights may change in place between calls, as in training of the policy it was made from. Once graphs are recorded
    they must not be moved or cast: graphs know their addresses.

    Attributes:
        captures: whether CUDA graphs are recorded.
    """

    backbone: VLMBackbone

    def __init__(self, policy: VLAPolicy, *, buckets: Sequence[int], jpeg: bool) -> None:
        """Arguments as of `accelerate`."""
        backbone = shared_copy(policy.backbone)
        super().__init__(
            spec=policy.spec,
            transforms=policy.transforms,
            cameras=policy.cameras,
            horizon=policy.horizon,
            backbone=backbone,
            head=shared_copy(policy.head),
            preset=policy.preset,
            arguments=policy.arguments,
            files=policy.files,
            augmentation=policy.augmentation,
            compute_batch=policy.compute_batch,
        )
        self.buckets, self.captures = tuple(buckets), False
        self._jpeg = jpeg and bool(getattr(backbone.vision, "jpeg", False))
        if hasattr(backbone.vision, "jpeg"):
            backbone.vision.jpeg = False  # pyright: ignore
        self._graphs: dict[tuple, Graph] = {}

    def _features(self, images_BKHWC: Tensor, state_BS: Tensor, instructions: Sequence[str]) -> Features:
        """See `VLAPolicy`. What graphs return is overwritten by the next call, so a head must be done by then."""
        if torch.is_grad_enabled():
            raise RuntimeError("a fast policy computes no gradients: train the policy that it was made from")
        if self._jpeg:
            images_BKHWC = jpeg_round_trip(images_BKHWC.flatten(0, 1)).view_as(images_BKHWC)
        words = self.backbone.words(instructions, pad_to=self._bucket(instructions))
        inputs = (images_BKHWC, state_BS, words.ids_BW, words.length_B)
        shape = (words.padded, images_BKHWC.shape, words.ids_BW.shape)

        def look(images_BKHWC: Tensor, state_BS: Tensor, ids_BW: Tensor, length_B: Tensor) -> Any:
            return self.backbone.look(images_BKHWC, state_BS, Words(ids_BW, length_B, words.padded))

        if not self.head.denoises:
            features_BHD = self._run(("all", *shape), lambda *tensors: self.backbone(look(*tensors)), *inputs)
            return lambda noisy_BHA=None, time_B=None: features_BHD
        context = self._run(("look", *shape), look, *inputs)
        # A recorded step reads the context where the recorded look leaves it.
        step = partial(self.backbone, context)
        return lambda noisy_BHA=None, time_B=None: self._run(("step", *shape), step, noisy_BHA, time_B)  # pyright: ignore

    def _bucket(self, instructions: Sequence[str]) -> int:
        longest = max(len(self.backbone.prompt.ids(instruction)) for instruction in instructions)
        return next((bucket for bucket in self.buckets if bucket >= longest), 0)

    def _run(self, key: tuple, function: Callable, *inputs: Tensor) -> Any:
        """The function's result, from the graph recorded at the first call of this key if graphs are."""
        if not self.captures:
            return function(*inputs)
        if key not in self._graphs:
            pool = next(iter(self._graphs.values())).pool if self._graphs else None
            self._graphs[key] = Graph(function, inputs, pool)
        return self._graphs[key](*inputs)


class Graph:
    """A function of tensors recorded as one CUDA graph, with inputs and outputs at fixed addresses.

    Graphs may share a memory pool as long as each result is used up before another graph of the pool runs.
    """

    def __init__(self, function: Callable, inputs: Sequence[Tensor], pool: Any = None) -> None:
        """Warms up and records.

        Args:
            function: launches kernels only: no transfers to or from the processor, no waiting.
            inputs: what it is recorded with; later ones must have the same shapes and types.
            pool: of another graph.
        """
        self._inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = function(*self._inputs)
        self.pool = self._graph.pool()

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs for these inputs; the next call overwrites them."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._outputs


def shared_copy[Module: nn.Module](module: Module) -> Module:
    """The module again, to be changed without changing the first; both hold the same weights in the same memory."""
    prompts = (part.prompt for part in module.modules() if isinstance(part, VLMBackbone))
    return copy.deepcopy(module, {id(kept): kept for kept in chain(module.parameters(), module.buffers(), prompts)})


def _compile_layers(backbone: nn.Module) -> None:
    """Compiles transformer layers one by one: they share their code, so that each kind is compiled once."""
    for layer in backbone.modules():
        if isinstance(layer, LlamaDecoderLayer | Block):
            layer.forward = torch.compile(layer.forward)  # pyright: ignore
