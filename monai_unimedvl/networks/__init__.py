# SPDX-License-Identifier: Apache-2.0
"""The network: layers, decoder, vision, autoencoder, and `UniMedVL` that joins them."""
