# SPDX-License-Identifier: Apache-2.0
"""Knowledge level: one objective, two ways to run it."""
