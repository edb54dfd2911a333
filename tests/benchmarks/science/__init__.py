# SPDX-License-Identifier: Apache-2.0
"""What the paper claims, put to the test with small networks: one configuration a question, one runner."""
