# SPDX-License-Identifier: Apache-2.0
"""Inferers in MONAI's sense: batches of prompts in, answers and images out."""
