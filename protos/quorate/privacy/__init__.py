"""What differential privacy a study asks for, what it costs, and the noise that pays for it.

The package's own modules need neither numpy nor torch where a study is only read and shown: ``study.privacy_section``
and ``events`` are plain values. ``accounting`` and ``noise`` do the arithmetic and are imported where there is
something to compute.
"""
