# SPDX-License-Identifier: Apache-2.0
"""Observation level: from files to records, packs, and the atlas corpus."""
