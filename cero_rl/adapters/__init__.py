"""CERO inside other trainers: `cero_rl.adapters.trl` (TRL 1.16) and `cero_rl.adapters.verl` (verl
0.9).

Import the one you use; this package imports neither, and nothing else in cero_rl imports this
package.
"""
