"""The keys that all tokens share, for the merged back end, forward and backward by chunks of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from castvision.ops._functions import MASKED, gate, laplace, laplace_derivative
from castvision.ops._own import own_divisor
from castvision.ops._problem import Problem, dropout_mask
from castvision.ops._summaries import summarise
from castvision.ops._weights import key_multiplicity


class Foreign:
    """The keys all tokens share, with a token's own clusters left out.

    keys, values: (B, H, F, D); bias: (B, F). Joint: [prefix ; summaries]. The paper's: surrogates and summaries.
    F may be 0 (without summaries).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        shape = (problem.batch, problem.heads, 0, problem.head_dim)
        keys, values = [problem.q.new_empty(shape)], [problem.q.new_empty(shape)]
        bias = [problem.log_counts[:, :0]]
        self.first_summary = 0
        if problem.joint and problem.prefix_k is not None and problem.prefix_v is not None:
            keys.append(problem.prefix_k)
            values.append(problem.prefix_v)
            bias.append(problem.log_counts.new_zeros(problem.batch, problem.num_prefix))
            self.first_summary = problem.num_prefix
        if problem.options.summaries:
            summary_keys, summary_values = summarise(problem)
            expanded = problem.surrogates.expand(problem.batch, -1, -1, -1)
            keys.append(summary_keys if problem.joint else expanded)
            values.append(summary_values)
            seen = torch.where(problem.counts > 0, 0.0, MASKED).to(problem.wide)
            bias.append(problem.log_counts if problem.joint else seen)
        self.keys, self.values, self.bias = torch.cat(keys, 2), torch.cat(values, 2), torch.cat(bias, 1)
        self.queries = problem.q if problem.joint else problem.q_route
        divisor = own_divisor(problem)
        if not problem.joint and not problem.softmax and problem.options.laplace_norm:
            clusters = (problem.counts > 0).sum(1, keepdim=True).clamp(min=1).to(problem.wide)
            divisor = clusters.expand(-1, problem.num_tokens)
        self.divisor = divisor

    def attend(self, seed: int) -> tuple[Tensor, Tensor]:
        """Output (B, N, H, D) and log-sum-exp (B, N, H) over the shared keys alone; Laplace: the plain sum, 0."""
        problem = self.problem
        generator = torch.Generator(problem.q.device).manual_seed(seed)
        out = torch.zeros_like(problem.q, memory_format=torch.contiguous_format)
        lse = problem.q.new_full(out.shape[:3], MASKED if problem.softmax else 0, dtype=problem.wide)
        if not self.keys.shape[2]:
            return out, lse
        for b, tokens in problem.token_chunks(problem.heads * self.keys.shape[2]):
            _, logits, bias = self._logits(b, tokens)
            if problem.softmax:
                biased = logits + bias
                lse[b, tokens] = biased.logsumexp(-1).T
                weight = biased.softmax(-1)
            else:
                weight = laplace(logits) * self._factor(b, tokens, bias)
            weight = weight * self._dropout(weight, generator)
            out[b, tokens] = (weight.to(problem.dtype) @ self.values[b]).transpose(0, 1)
        return out, lse

    def backward(self, grad: Tensor, lse: Tensor, delta: Tensor, seed: int) -> None:
        """Sets key_grad, value_grad (B, H, F, D), query_grad (B, N, H, D) and gate_grad (B, N)."""
        problem = self.problem
        generator = torch.Generator(problem.q.device).manual_seed(seed)
        self.key_grad, self.value_grad = (torch.zeros_like(x, dtype=problem.wide) for x in (self.keys, self.values))
        self.query_grad = torch.zeros_like(problem.q, memory_format=torch.contiguous_format)
        self.gate_grad = torch.zeros_like(problem.phi)
        if not self.keys.shape[2]:
            return
        for b, tokens in problem.token_chunks(problem.backward_factor * problem.heads * self.keys.shape[2]):
            raw, logits, bias = self._logits(b, tokens)
            g = grad[b, tokens].transpose(0, 1)  # H, tokens, D
            dw = (g @ self.values[b].transpose(-1, -2)).to(problem.wide)
            if problem.softmax:
                weight = torch.exp(logits + bias - lse[b, tokens].T[..., None])
                mask = self._dropout(weight, generator)
                dl = weight * (dw * mask - delta[b, tokens].T[..., None])
            else:
                factor = self._factor(b, tokens, bias)
                weight = laplace(logits) * factor
                mask = self._dropout(weight, generator)
                dl = laplace_derivative(logits) * factor * dw * mask
            self.value_grad[b] += (weight * mask).to(problem.dtype).transpose(-1, -2) @ g
            self.gate_grad[b, tokens] = (dl * raw).sum((0, 2))
            draw = (dl * self._sharpness(b, tokens) * problem.options.scale).to(problem.dtype)
            self.key_grad[b] += draw.transpose(-1, -2) @ self.queries[b, tokens].transpose(0, 1)
            self.query_grad[b, tokens] = (draw @ self.keys[b]).transpose(0, 1)

    def summary_key_grad(self) -> Tensor | None:
        """Gradient of the summary keys, (B, H, M, D); the paper's mixing has none."""
        return self.key_grad[:, :, self.first_summary :] if self.problem.joint else None

    def _logits(self, b: int, tokens: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled logits before and after the gate, (H, tokens, F), and the bias with own clusters MASKED."""
        problem = self.problem
        q = self.queries[b, tokens].transpose(0, 1) * problem.options.scale
        raw = (q @ self.keys[b].transpose(-1, -2)).to(problem.wide)
        bias = self.bias[b].expand(raw.shape[1:])
        if problem.options.summaries:
            outside = problem.foreign(b, tokens)
            bias = torch.cat(
                [bias[:, : self.first_summary], bias[:, self.first_summary :].masked_fill(~outside, MASKED)], 1
            )
        return raw, raw * self._sharpness(b, tokens), bias

    def _sharpness(self, b: int, tokens: slice) -> Tensor | float:
        return 1.0 if self.problem.joint else gate(self.problem.phi[b, tokens])[:, None]

    def _factor(self, b: int, tokens: slice, bias: Tensor) -> Tensor:
        factor = key_multiplicity(bias, False)
        return factor if self.divisor is None else factor / self.divisor[b, tokens, None]

    def _dropout(self, weight: Tensor, generator: torch.Generator) -> Tensor | float:
        p = self.problem.options.dropout_p
        return dropout_mask(weight, p, generator) if p and self.problem.joint else 1.0
