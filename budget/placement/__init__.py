"""Where each model should run: layers, device, context and slots, for all models together.

Pure: tables of bytes and measured rates in, decisions with predicted tokens/s out. `machine_rates`
holds what was measured, `traffic` what one token reads, `tables` both sides by n_gpu_layers, `cost`
the expected seconds of a request, `planner` the search, `runtimes` which runtime suits a case.
"""
