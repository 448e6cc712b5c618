"""What a machine shows of itself before a site releases anything to it, and whether that is enough.

``Evidence`` is what came, ``Expected`` what was asked, ``AttestationPolicy`` what the site allows; ``appraise`` holds
them together and gives an ``Appraisal`` or raises ``AttestationError``. No input and output, no clock: time is an
argument. Verification is tested on genuine evidence; producing evidence has not been run on hardware.
"""
