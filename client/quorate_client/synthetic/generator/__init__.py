"""The generator of synthetic tables: marginal tables with Gaussian noise, and records drawn from them."""

from quorate_client.synthetic.generator.generate import GENERATOR, generate
from quorate_client.synthetic.generator.plan import Plan, plan

__all__ = ["GENERATOR", "Plan", "generate", "plan"]
