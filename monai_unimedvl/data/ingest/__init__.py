# SPDX-License-Identifier: Apache-2.0
"""Files of every kind -> records: one module for each kind of source, and what they share in `base`."""
