"""The order in which modules are called and their gradients arrive."""

import torch


def calls(aligner, batches):
    """Names of modules with parameters of their own, as they are called and driven backwards in one step."""
    order, handles = [], []
    for name, module in aligner.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
            handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: watch(out, name)))

    def watch(out, name):
        if isinstance(out, torch.Tensor) and out.requires_grad:
            out.register_hook(lambda _gradient: order.append(f"backward {name}"))

    aligner.zero_grad(set_to_none=True)
    aligner(batches)[0].backward()
    for handle in handles:
        handle.remove()
    return order
