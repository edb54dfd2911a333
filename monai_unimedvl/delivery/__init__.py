# SPDX-License-Identifier: Apache-2.0
"""Results leave the house: the audit of what was asked, and sending to archives with a queue on disk."""
