# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app: every task of the model for 3D Slicer, OHIF and plain HTTP; learning from labels.

`unimedvl label-app DIR` writes the folder of an app, `python -m monai_unimedvl.label` serves it. MONAI Label
0.8.5 cannot be imported beside pydicom 3 and CPU torch as it is; `guard.protect` mends that, so it comes
before any other import of `monailabel`. docs/LABEL.md has the tasks, their settings and the installation.
"""
