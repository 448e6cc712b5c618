"""The generator of synthetic tables: marginal tables with Gaussian noise, and records drawn from them."""

from quorate_client.synthetic.generator.budget import Plan, plan
from quorate_client.synthetic.generator.generation import GENERATOR, generate

__all__ = ["GENERATOR", "Plan", "generate", "plan"]
