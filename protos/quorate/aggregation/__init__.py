"""What is added and how it is encrypted: integers in lanes, arithmetic modulo q, encryption under one-time keys."""
