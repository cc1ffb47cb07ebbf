"""vaespec_conformance: does a backend, or somebody's whole VAE, compute AutoencoderKL? See `run_conformance`."""
