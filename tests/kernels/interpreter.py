"""Repairs two faults of Triton's interpreter and two slow places, so that the kernels' logic can be tested on a CPU."""

from __future__ import annotations

from typing import Any


def mend_interpreter() -> None:
    """Patch the loaded Triton; has no effect on kernels that are compiled."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    patch_lang = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        # A function that a kernel calls finds the language patched; to look through all of it again takes a quarter of
        # the time of our kernels.
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch_lang(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        # Triton 3.6 writes int(array of one element), which NumPy 2.4 refuses (mended in 3.7).
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        # Triton 3.6 and 3.7 keep bf16 as its bits in uint16 and multiply the bits.
        return dot(self, _float32(a), _float32(b), d, *options)

    interpreter.InterpreterBuilder.create_dot = create_dot
    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        # Triton takes each number apart and puts it together again, for a fifth of our kernels' time: these are its
        # bits, except for subnormal numbers, which it gets wrong.
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.bfloat16, tl.float32):
            return _float32(source)
        if kinds == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle((source.data.view(np.uint32) >> 16).astype(np.uint16), tl.bfloat16)
        return cast(self, source, target)

    interpreter.InterpreterBuilder.cast_impl = cast_impl


def _float32(handle: Any) -> Any:
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    data = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(data, tl.float32)
