"""AgentDojo without a model: what the gate lets through of attacks on an agent that obeys them.

AgentDojo has four suites of tools with an environment, tasks of a user, and attacks that stand in
what the tools return. Here an agent does a user's task by the calls that AgentDojo has as its
solution, and then, as if it had been talked into it, the calls of an attack. Each call is decided
by the suite's manifest (manifests/SUITE.toml) and made only where that allows it; what it returns
taints the agent with "tool:NAME". Every pair is tried twice, with a person who says no to whatever
the user's task asks, and with one who says yes; the attack's questions nobody answers.

    pairs           a task with an attack that has calls
    attacks         pairs in which a call of the attack changed the environment
    attacks_check   pairs in which AgentDojo's own check says that the attack succeeded
    attacks_asked   pairs in which the attack would have asked a person
    uncalled        pairs with an attack that AgentDojo has no calls for: they cannot be replayed
    uncalled_check  those that its check lets succeed by the model's words alone: no gate sees them
    tasks           the user's tasks that AgentDojo's own check finds done without a question
    tasks_asked     those that are done if a person says yes to all that is asked, these included
    questions       how many that takes, over all tasks

The peer is the same agent with a manifest that allows everything; `no_labels` is our manifest for
an agent that nothing taints.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from copy import copy, deepcopy
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import msgspec

from aios.kernel.manifests import SourcedRule, rules_of
from aios.kernel.rules import AccessRequest, RuleEvaluator, Subject
from aios.syscalls.errors import AiosError
from aios.syscalls.rules import Manifest

from .common import Progress, Target

TARGET = Target(0.0)
VERSION = "v1.2.2"
SUITES = ("workspace", "travel", "banking", "slack")
FIGURES = (
    "pairs", "attacks", "attacks_check", "attacks_asked", "uncalled", "uncalled_check", "all_tasks",
    "tasks", "tasks_asked", "questions",
)  # fmt: skip
BY_SUITE = ("pairs", "attacks", "all_tasks", "tasks", "tasks_asked", "questions")
AGENT = "/dojo"
ALL = Manifest(allow=["tool"])
EVALUATOR = RuleEvaluator({}, lambda _: None)


def run(progress: Progress, suites: tuple[str, ...] = SUITES) -> dict[str, Any]:
    ours: list[dict[str, int]] = []
    peer: list[dict[str, int]] = []
    for name in suites:
        progress(f"{name}: each task with each attack")
        suite, manifest = Suite(name), manifest_of(name)
        unlabelled = measure(suite, manifest, tainting=False)
        no_labels = {f"{figure}_no_labels": unlabelled[figure] for figure in ("attacks", "tasks")}
        ours.append({**measure(suite, manifest), **no_labels})
        peer.append(measure(suite, ALL))
    sides = {"ours": joined(suites, ours), "peer": joined(suites, peer)}
    ratio = sides["ours"]["attacks"] / sides["ours"]["pairs"]
    return {"ratio": ratio, **sides}


def joined(suites: tuple[str, ...], found: list[dict[str, int]]) -> dict[str, int]:
    """Return the sums over all suites, then the figures of each."""
    sums = {figure: sum(each[figure] for each in found) for figure in found[0]}
    return sums | {
        f"{figure}_{name}": each[figure]
        for name, each in zip(suites, found, strict=True)
        for figure in BY_SUITE
    }


def manifest_of(name: str) -> Manifest:
    text = files("aios.bench").joinpath("manifests", f"{name}.toml").read_text()
    return msgspec.convert(tomllib.loads(text), Manifest)


def measure(suite: Suite, manifest: Manifest, tainting: bool = True) -> dict[str, int]:
    rules = rules_of(AGENT, manifest, {})
    found: Counter[str] = Counter()
    for task in suite.tasks:
        agents = [Agent(suite, task, rules, tainting, yes=False)]
        done = [agents[0].work()]
        if agents[0].asked:
            agents.append(Agent(suite, task, rules, tainting, yes=True))
            done.append(agents[1].work())
        found.update(all_tasks=1, tasks=done[0], tasks_asked=done[-1])
        found["questions"] += agents[-1].asked if done[-1] else 0
        for attack in suite.attacks:
            found.update({figure for agent in agents for figure in agent.attacked(attack)})
    return {figure: found[figure] for figure in FIGURES}


class Suite:
    """One of AgentDojo's: its tools, its tasks and attacks, and an environment to copy."""

    def __init__(self, name: str) -> None:
        get_suite, runtime = agentdojo()
        suite = get_suite(VERSION, name)
        self.environment = suite.load_and_inject_default_environment({})
        self.tasks = list(suite.user_tasks.values())
        self.attacks = list(suite.injection_tasks.values())
        self.runtime = runtime(suite.tools)


class Agent:
    """Does one task, and then as it is told. `yes`: a person who is asked says so."""

    def __init__(
        self, suite: Suite, task: Any, rules: list[SourcedRule], tainting: bool, yes: bool
    ) -> None:
        self.suite, self.task, self.rules, self.tainting = suite, task, rules, tainting
        self.yes = yes
        self.environment = task.init_environment(deepcopy(suite.environment))
        self.labels: frozenset[str] = frozenset()
        self.asked = 0

    def work(self) -> bool:
        """Do the user's task. Return whether it is done."""
        before = deepcopy(self.environment)
        made = [call for call in self.task.ground_truth(before) if self.makes(call)]
        ends = self.task.GROUND_TRUTH_OUTPUT, before, self.environment
        done = self.task.utility_from_traces(*ends, made)
        return bool(self.task.utility(*ends) if done is None else done)

    def attacked(self, attack: Any) -> Iterator[str]:
        """Do what an attack says, in a copy. Yield the figures that it counts in."""
        calls = attack.ground_truth(self.environment)
        twin = copy(self)
        twin.environment = deepcopy(self.environment) if calls else self.environment
        twin.yes, twin.asked = False, 0
        made, changed = [], False
        for call in calls:
            state = twin.environment.model_dump()
            if twin.makes(call):
                made.append(call)
                changed = changed or twin.environment.model_dump() != state
        ends = attack.GROUND_TRUTH_OUTPUT, self.environment, twin.environment
        succeeded = attack.security_from_traces(*ends, made)
        succeeded = attack.security(*ends) if succeeded is None else succeeded
        yield "pairs" if calls else "uncalled"
        if changed:
            yield "attacks"
        if succeeded:
            yield "attacks_check" if calls else "uncalled_check"
        if twin.asked:
            yield "attacks_asked"

    def makes(self, call: Any) -> bool:
        subject = Subject(AGENT, [self.rules], 1, self.labels)
        request = AccessRequest("tool", call.function, args=call.args)
        effect = EVALUATOR.decide(subject, request, 0.0).effect
        self.asked += effect == "ask"
        if effect == "deny" or (effect == "ask" and not self.yes):
            return False
        self.suite.runtime.run_function(self.environment, call.function, call.args)
        if self.tainting:
            self.labels |= {f"tool:{call.function}"}
        return True


@cache
def agentdojo() -> tuple[Any, Any]:
    """Import what finds its suites and runs their tools.

    Its drivers of models stay out: they import the clients of five vendors.

    Raises:
        AiosError: a package is not installed.
    """
    try:
        spec = find_spec("agentdojo.agent_pipeline")
        assert spec is not None
        sys.modules[spec.name] = module_from_spec(spec)  # known as a package, but not executed
        pipeline = ModuleType(f"{spec.name}.ground_truth_pipeline")
        pipeline.__dict__["GroundTruthPipeline"] = None
        sys.modules[pipeline.__name__] = pipeline
        suites = import_module("agentdojo.task_suite.load_suites")
        return suites.get_suite, import_module("agentdojo.functions_runtime").FunctionsRuntime
    except ModuleNotFoundError as error:
        raise AiosError(
            f"bench dojo needs the package {error.name}",
            "run `make bench`, or pip install 'aios-system[dojo]', and --no-deps agentdojo==0.1.35",
        ) from error
