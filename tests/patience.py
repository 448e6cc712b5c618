"""How long a test waits for what must happen."""

PATIENCE_S = 300.0
"""Far longer than anything takes, on a machine too that does ten other things: only a test that fails waits so long.

What must *not* happen is never waited for; where time itself is the subject, a test has figures of its own.
"""
