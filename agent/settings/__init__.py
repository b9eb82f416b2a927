"""Reading what an operator writes: YAML with line numbers, substitution, value types, the environment.

YAML scalars stay text until the field that receives them gives them a type; so a password `0123` stays `0123`, and a
substituted variable can never change the structure of the file.
"""
