"""A graph of tensors as ggml builds it, as far as its allocator looks at it.

Tensors have dimensions and strides, but no data. Sources: `ggml/src/ggml.c` (what each operation makes,
`ggml_visit_parents_graph` for the order of nodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Dims = tuple[int, int, int, int]

IN_PLACE: Final = frozenset(
    {
        "scale",
        "add",
        "add_id",
        "mul",
        "div",
        "unary",
        "rope",
        "rms_norm",
        "clamp",
        "soft_max",
        "fill",
    }
)
"""Operations that may write over a source (`ggml/src/ggml-alloc.c`, `ggml_op_can_inplace`)."""

HOST: Final = 1 << 16
UNDECIDED: Final = -1
"""Where a tensor is: devices are numbered from 0, the host comes after all of them."""

F32: Final = 4
F16: Final = 2
I64: Final = 8


class GraphTensor:
    """A node or a leaf: `ne` elements and `nb` bytes by dimension, innermost first.

    `root` is the tensor whose memory a view looks at. `external` memory is a weight's or a cache's;
    an `output` is never given back. `side` is where it is computed or lies: a device's number, `HOST`,
    or not decided yet.
    """

    __slots__ = ("children", "external", "input", "nb", "ne", "offset", "op", "output", "owned",
                 "root", "seen", "side", "src", "views", "weight")  # fmt: skip

    def __init__(
        self,
        op: str,
        ne: Dims,
        nb: Dims,
        src: tuple[GraphTensor, ...] = (),
        root: GraphTensor | None = None,
    ) -> None:
        self.op, self.ne, self.nb, self.src, self.root = op, ne, nb, src, root
        self.external = self.weight = self.input = self.output = self.seen = self.owned = False
        self.side = UNDECIDED
        self.children = self.views = self.offset = 0

    @property
    def n_bytes(self) -> int:
        """From its first byte to its last (`ggml_nbytes`); a view may leave out some between."""
        ne, nb = self.ne, self.nb
        if 0 in ne:
            return 0
        last = (ne[0] - 1) * nb[0] + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]
        return nb[0] + last

    @property
    def rows(self) -> int:
        """Elements over all dimensions but the innermost."""
        return self.ne[1] * self.ne[2] * self.ne[3]


def dims(*ne: int) -> Dims:
    """Four dimensions, those that are left out being 1."""
    return (*ne, *(1,) * (4 - len(ne)))  # type: ignore[return-value]


def strides(ne: Dims, element: int = F32) -> Dims:
    """Those of a contiguous tensor."""
    first = element * ne[0]
    second = first * ne[1]
    return element, first, second, second * ne[2]


class ComputeGraph:
    """Operations in the order in which they are computed, and the leaves they start from."""

    def __init__(self) -> None:
        self.nodes: list[GraphTensor] = []
        self.leaves: list[GraphTensor] = []

    def expand(self, tensor: GraphTensor) -> GraphTensor:
        """Add a tensor after everything it is made from (`ggml_build_forward_expand`)."""
        if tensor.seen:
            return tensor
        tensor.seen = True
        for source in tensor.src:
            self.expand(source)
        (self.nodes if tensor.op else self.leaves).append(tensor)
        return tensor


def there(side: int, *, weight: bool) -> GraphTensor:
    """A weight, or a cache, that lies on that side already: the allocator never looks at its size."""
    found = GraphTensor("", (1, 1, 1, 1), (0, 0, 0, 0))
    found.external, found.weight, found.side = True, weight, side
    return found


def graph_input(n_elements: int, element: int) -> GraphTensor:
    """What is set from outside before each run."""
    ne = dims(n_elements)
    found = GraphTensor("", ne, strides(ne, element))
    found.input, found.side = True, HOST
    return found


def made(op: str, ne: Dims, *src: GraphTensor, element: int = F32) -> GraphTensor:
    """The result of an operation in memory of its own."""
    return GraphTensor(op, ne, strides(ne, element), src)


def like(op: str, *src: GraphTensor) -> GraphTensor:
    """The result of an operation by element, contiguous, of its first source's dimensions."""
    return GraphTensor(op, src[0].ne, strides(src[0].ne), src)


def view(source: GraphTensor, ne: Dims, nb: Dims) -> GraphTensor:
    """A view of a tensor's memory, or of that which it is a view of."""
    return GraphTensor("view", ne, nb, (source,), source.root or source)


def reshape(source: GraphTensor, *ne: int) -> GraphTensor:
    """The same contiguous elements in other dimensions."""
    shape = dims(*ne)
    return view(source, shape, strides(shape, source.nb[0]))


def permute(source: GraphTensor, order: Sequence[int]) -> GraphTensor:
    """Dimension `i` of the source becomes dimension `order[i]`."""
    ne, nb = [0] * 4, [0] * 4
    for i, to in enumerate(order):
        ne[to], nb[to] = source.ne[i], source.nb[i]
    return view(source, tuple(ne), tuple(nb))  # type: ignore[arg-type]


def transpose(source: GraphTensor) -> GraphTensor:
    """The first two dimensions exchanged."""
    return permute(source, (1, 0, 2, 3))
