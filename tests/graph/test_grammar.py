"""Of random losses drawn from a grammar of layers: capture computes what a loop of ``torch.func.grad`` computes."""

from grammar import Program, programs
from hypothesis import HealthCheck, given, settings
from loops import loop, worst

from devinterp_func import graph, keys, per_example, tree


@given(programs())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_capture_is_the_loop_for_any_program(program: Program):
    loss, params, batch = program.case[:3]
    made = graph.of(loss, params, *tree.map(lambda x: x[0], batch))
    masks = graph.draw_masks(made, each=[keys.fold_in(0, "masks", j) for j in range(len(batch[0]))])
    captured = per_example.capture(made, params, *batch, masks=masks, units=("*",))
    losses, gradients = loop(loss, params, batch, made.sites, masks)
    assert worst({"losses": captured.losses}, {"losses": losses}) <= 1e-10
    assert worst({name: per_example.form(factor) for name, factor in captured.factors.items()}, gradients) <= 1e-10
    assert worst(captured.mean_grads, tree.map(lambda g: g.mean(0), gradients)) <= 1e-10
    summed = {name: part.sum(1) for name, part in per_example.token_gradients(captured.factors).items()}
    assert worst(summed, gradients) <= 1e-10
