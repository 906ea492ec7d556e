"""A chunk computed the way OpenVLA-OFT's published code does, for comparison: same weights, same actions, more work.

One observation at a time, eagerly: pictures prepared one by one on the processor through PIL, prompts not padded, the
sequence in its published order with embedded placeholders multiplied by zero, both vision towers to their last block
(whose output is not used), the states of all layers kept, and the language head on all positions.
"""

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from vla.core.types import Float, Observation
from vla.policies.fast import shared_copy
from vla.policies.threads import single_thread
from vla.policies.vla import VLAPolicy

PLACEHOLDER = 1  # the id whose embedding is multiplied by zero


class ReferenceWay:
    """Acts as the policy does."""

    def __init__(self, policy: VLAPolicy) -> None:
        """Shares the policy's weights; those that only the published code has (last blocks, head) are new."""
        self.policy = policy
        self.backbone: Any = policy.backbone
        vision, table = self.backbone.vision, self.backbone.language.embed_tokens.weight
        self.colours = (vision.dino_colours, vision.siglip_colours)
        self.towers = [shared_copy(tower) for tower in (vision.featurizer, vision.fused_featurizer)]
        for tower in self.towers:
            tower.blocks.append(copy.deepcopy(tower.blocks[-1]))
        self.lm_head = nn.Linear(*reversed(table.shape), bias=False, device=table.device, dtype=table.dtype)

    @torch.no_grad()
    def act(self, observation: Observation) -> Float:
        """The actions (H, A) in physical units."""
        policy, backbone = self.policy, self.backbone
        with single_thread():
            pixels_K6HW = torch.stack([self._prepare(observation.images[camera]) for camera in policy.cameras])
            pixels_K6HW = pixels_K6HW.to(policy.device, backbone.language.embed_tokens.weight.dtype)
            state_S = policy.transforms.observation(observation.state_S)
            states_1ND, first = self._read(pixels_K6HW, torch.from_numpy(state_S).to(policy.device), observation)
            self.lm_head(states_1ND)
            slots = backbone.horizon * backbone.slots_per_action
            features_1HD = states_1ND[:, first : first + slots].unflatten(1, (backbone.horizon, -1)).flatten(2)
            scaled_HA = policy.head.sample(lambda: features_1HD, [])[0].cpu().numpy()  # pyright: ignore
        actions_HA = policy.transforms.inverse_actions(scaled_HA)
        return np.clip(actions_HA, policy.spec.action_low_A, policy.spec.action_high_A).astype(np.float32)

    def _prepare(self, image_HWC: np.ndarray) -> Tensor:
        """(6, h, w): the picture normalised for either tower."""
        seen_HWC = self.backbone.vision.preprocess(torch.from_numpy(image_HWC)[None])[0]
        picture = Image.fromarray(seen_HWC.numpy())
        planes = [functional.normalize(functional.to_tensor(picture), mean, std) for mean, std in self.colours]
        return torch.cat(planes)

    def _read(self, pixels_K6HW: Tensor, state_S: Tensor, observation: Observation) -> tuple[Tensor, int]:
        """The language model's states (1, N, D), and the place from which the first slot's is read."""
        backbone = self.backbone
        ids = backbone.prompt.ids(observation.instruction)
        slots = backbone.horizon * backbone.slots_per_action
        row = [*ids, *[PLACEHOLDER] * slots, backbone.prompt.stop_id]
        words_1ND = backbone.language.embed_tokens(torch.tensor([row], device=state_S.device))
        is_slot_N1 = torch.zeros(len(row), 1, dtype=torch.bool, device=state_S.device)
        is_slot_N1[len(ids) : len(ids) + slots] = True
        words_1ND = words_1ND * ~is_slot_N1
        seen_KTV = torch.cat(
            [
                tower.get_intermediate_layers(pixels_K3HW, n=[len(tower.blocks) - 2])[0]
                for tower, pixels_K3HW in zip(self.towers, pixels_K6HW.split(3, dim=1), strict=True)
            ],
            dim=-1,
        )
        parts = [words_1ND[:, :1], backbone.projector(seen_KTV).flatten(0, 1)[None]]
        if backbone.proprio_projector is not None:
            parts.append(backbone.proprio_projector(state_S[None])[:, None])
        tokens_1ND = torch.cat([*parts, words_1ND[:, 1:]], dim=1)
        first = tokens_1ND.shape[1] - slots - 2
        return backbone.language(inputs_embeds=tokens_1ND, output_hidden_states=True).hidden_states[-1], first
