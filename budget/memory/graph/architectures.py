"""The graph of each architecture for a full micro-batch: what comes first, the layers, the end."""

from __future__ import annotations

from budget.footprint import EngineArgs
from budget.memory.graph.blocks import Blocks, softcap
from budget.memory.graph.encoder import encoder_input
from budget.memory.graph.gemma4 import per_layer_inputs, per_layer_width
from budget.memory.graph.layers import LAYERS, Build
from budget.memory.graph.layouts import LAYOUTS, representative_layers
from budget.memory.graph.rotations import is_quantized
from budget.memory.graph.tensors import (
    F32,
    ComputeGraph,
    GraphTensor,
    dims,
    graph_input,
    like,
    made,
    transpose,
)
from budget.memory.shape import ModelShape

_I32 = 4


def graph_of(shape: ModelShape, args: EngineArgs) -> ComputeGraph:
    """The graph of a full micro-batch of a model with these arguments.

    Raises:
        KeyError: the architecture is not among `LAYOUTS`.
    """
    layout = LAYOUTS[shape.architecture]
    refused = layout.layer == "short" and _is_flash_refused(shape, args)
    b = Blocks(shape, args, positions=layout.positions, refused=refused)
    build = Build.of(b, layout)
    found = b.embedding()
    if layout.scaled_embedding:
        found = like("scale", found)
    if layout.layer == "encoder":
        found = encoder_input(b, found)
    layers = representative_layers(shape, b.sides[: build.last + 1])
    if layout.layer == "gemma4" and per_layer_width(b):
        build.own_inputs = per_layer_inputs(b, found)
        layers = [*range(shape.n_layers)]  # each takes its own
    for layer in layers:
        b.enter(layer)
        found = LAYERS[layout.layer](build, found, layer)
    b.enter(shape.n_layers)
    _end(build, found)
    return b.graph


def _is_flash_refused(shape: ModelShape, args: EngineArgs) -> bool:
    """Whether `auto` makes no flash attention: of a layer on the host it would be computed on a device.

    That happens before a layer there whose state is asked for early (`resolve_fused_ops`), where no experts
    come between.
    """
    first = shape.n_layers + 1 - args.n_gpu_layers
    if args.flash_attention != "auto" or is_quantized(args.kv_type_v):
        return False
    if not 0 < first < shape.n_layers or (shape.n_experts and first > shape.n_layers_dense_lead):
        return False
    state = shape.recurrent_layers
    return state[first] and not state[first - 1]


def _end(build: Build, found: GraphTensor) -> None:
    """The last norm and the output layer, and what is pooled of them; their results are kept."""
    b, layout = build.b, build.layout
    if layout.late == "layer":
        found.output = True
        found = b.output_rows(found)
    if layout.layer != "encoder":
        found = like("mul", like("rms_norm", found), b.weight)
    if layout.late == "norm":
        found.output = True
        found = b.output_rows(found)
    found.output = True
    if layout.layer != "encoder" and (layout.logits_beside_pooling or not b.args.embeddings):
        _logits(b, found)
    b.graph.expand(found)
    if b.args.embeddings:
        pooled = _pooled(b, found)
        pooled.output = True
        b.graph.expand(pooled)


def _logits(b: Blocks, source: GraphTensor) -> None:
    found = b.mat_mul(b.shape.n_vocab, source)
    if b.shape.key("final_logit_softcapping") or b.shape.architecture == "gemma2":
        found = softcap(found)
    found.output = True
    b.graph.expand(found)


def _pooled(b: Blocks, source: GraphTensor) -> GraphTensor:
    """`build_pooling`."""
    width, slots = source.ne[0], b.args.slots
    if b.shape.pooling in {None, "none"}:
        return source
    if b.shape.pooling == "mean":
        turned = transpose(source)
        turned = made("cont", turned.ne, turned)
        return made("mul_mat", dims(width, slots), turned, graph_input(b.tokens * slots, F32))
    found = made("get_rows", dims(width, slots), source, graph_input(slots, _I32))
    return _ranked(b, found) if b.shape.pooling == "rank" else found


def _ranked(b: Blocks, found: GraphTensor) -> GraphTensor:
    """A classifier's head, as far as the file has one."""
    if "cls.weight" in b.tensors:
        rows = b.tensors["cls.weight"].dims[1]
        found = like("unary", b.mat_mul(rows, found, bias="cls.bias" in b.tensors))
    if "cls.output.weight" in b.tensors:
        rows = b.tensors["cls.output.weight"].dims[1]
        found = b.mat_mul(rows, found, bias="cls.output.bias" in b.tensors)
    return like("soft_max", found) if b.shape.architecture == "qwen3" else found
