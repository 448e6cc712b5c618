"""What this site keeps of its appraisals of attested machines: a signed record of each, and how it is replayed."""
