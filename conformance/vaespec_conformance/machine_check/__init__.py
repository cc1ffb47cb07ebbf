"""`vaespec check`: does this machine compute the user's own VAE right, on his backend, device, dtype and size?"""
