# SPDX-License-Identifier: Apache-2.0
"""Anatomy in words: AAL regions and their groups, and the name of a slice's level in MNI space.

AAL: Tzourio-Mazoyer et al. 2002, NeuroImage 15:273. The levels are ours: rough bands, named after what is
seen there.
"""

from __future__ import annotations

__all__ = ["GROUPS", "LEVELS", "PARCELS", "REGIONS", "aal_indices", "level_of"]

# name -> what AAL calls it (prefixes)
REGIONS: dict[str, tuple[str, ...]] = {
    "hippocampus": ("Hippocampus",),
    "amygdala": ("Amygdala",),
    "caudate nucleus": ("Caudate",),
    "putamen": ("Putamen",),
    "thalamus": ("Thalamus",),
    "insula": ("Insula",),
    "cingulate gyrus": ("Cingulum",),
    "cerebellum": ("Cerebelum", "Vermis"),
    "precuneus": ("Precuneus",),
    "calcarine cortex": ("Calcarine",),
    "temporal lobe": ("Temporal", "Heschl", "Fusiform"),
    "occipital lobe": ("Occipital", "Cuneus", "Lingual", "Calcarine"),
    "parietal lobe": ("Parietal", "Postcentral", "SupraMarginal", "Angular", "Precuneus", "Paracentral"),
}
# ten colours of the lobe map
GROUPS: dict[str, tuple[str, ...]] = {
    "frontal lobe": ("Precentral", "Frontal", "Rolandic", "Supp_Motor", "Olfactory", "Rectus"),
    "parietal lobe": REGIONS["parietal lobe"],
    "temporal lobe": ("Temporal", "Heschl", "Fusiform", "ParaHippocampal"),
    "occipital lobe": REGIONS["occipital lobe"],
    "insula": ("Insula",),
    "cingulate gyrus": ("Cingulum",),
    "basal ganglia": ("Caudate", "Putamen", "Pallidum"),
    "thalamus": ("Thalamus",),
    "hippocampus and amygdala": ("Hippocampus", "Amygdala"),
    "cerebellum": ("Cerebelum", "Vermis"),
}
# the parts of which both are made: what a vision encoder is taught to find (`training.vision`)
PARCELS: dict[str, tuple[str, ...]] = {
    "frontal lobe": GROUPS["frontal lobe"],
    "precuneus": ("Precuneus",),
    "rest of the parietal lobe": ("Parietal", "Postcentral", "SupraMarginal", "Angular", "Paracentral"),
    "temporal lobe": REGIONS["temporal lobe"],
    "parahippocampal gyrus": ("ParaHippocampal",),
    "calcarine cortex": ("Calcarine",),
    "rest of the occipital lobe": ("Occipital", "Cuneus", "Lingual"),
    "insula": ("Insula",),
    "cingulate gyrus": ("Cingulum",),
    "caudate nucleus": ("Caudate",),
    "putamen": ("Putamen",),
    "pallidum": ("Pallidum",),
    "thalamus": ("Thalamus",),
    "hippocampus": ("Hippocampus",),
    "amygdala": ("Amygdala",),
    "cerebellum": ("Cerebelum", "Vermis"),
}
# upper edge in MNI mm (|x| for sagittal) -> name of the level
LEVELS: dict[str, list[tuple[float, str]]] = {
    "axial": [
        (-38, "the lower cerebellum"), (-24, "the pons"), (-10, "the midbrain"),
        (4, "the basal ganglia"), (18, "the thalamus"), (32, "the lateral ventricles"),
        (48, "the centrum semiovale"), (99, "the vertex"),
    ],
    "coronal": [
        (-78, "the occipital pole"), (-58, "the parieto-occipital sulcus"), (-40, "the splenium"),
        (-22, "the brain stem"), (-6, "the thalamus"), (12, "the anterior commissure"),
        (32, "the frontal horns"), (99, "the frontal pole"),
    ],
    "sagittal": [
        (5, "the midline"), (15, "the lateral ventricle"), (27, "the basal ganglia"), (41, "the insula"),
        (99, "the temporal lobe"),
    ],
}  # fmt: skip


def level_of(plane: str, place: float) -> str:
    """Name of the level at `place` mm; |x| for sagittal slices."""
    return next(name for edge, name in LEVELS[plane] if place < edge)


def aal_indices() -> dict[str, list[int]]:
    """Prefix of an AAL name -> its label numbers."""
    names = _AAL.split()
    named = (*REGIONS.values(), *GROUPS.values(), *PARCELS.values())
    prefixes = {prefix for group in named for prefix in group}
    return {prefix: [i + 1 for i, name in enumerate(names) if name.startswith(prefix)] for prefix in prefixes}


# the 116 names of AAL in its own order: the label of a name is its place, from 1
_AAL = """
Precentral_L Precentral_R Frontal_Sup_L Frontal_Sup_R Frontal_Sup_Orb_L Frontal_Sup_Orb_R Frontal_Mid_L
Frontal_Mid_R Frontal_Mid_Orb_L Frontal_Mid_Orb_R Frontal_Inf_Oper_L Frontal_Inf_Oper_R Frontal_Inf_Tri_L
Frontal_Inf_Tri_R Frontal_Inf_Orb_L Frontal_Inf_Orb_R Rolandic_Oper_L Rolandic_Oper_R Supp_Motor_Area_L
Supp_Motor_Area_R Olfactory_L Olfactory_R Frontal_Sup_Medial_L Frontal_Sup_Medial_R Frontal_Med_Orb_L
Frontal_Med_Orb_R Rectus_L Rectus_R Insula_L Insula_R Cingulum_Ant_L Cingulum_Ant_R Cingulum_Mid_L
Cingulum_Mid_R Cingulum_Post_L Cingulum_Post_R Hippocampus_L Hippocampus_R ParaHippocampal_L
ParaHippocampal_R Amygdala_L Amygdala_R Calcarine_L Calcarine_R Cuneus_L Cuneus_R Lingual_L Lingual_R
Occipital_Sup_L Occipital_Sup_R Occipital_Mid_L Occipital_Mid_R Occipital_Inf_L Occipital_Inf_R
Fusiform_L Fusiform_R Postcentral_L Postcentral_R Parietal_Sup_L Parietal_Sup_R Parietal_Inf_L
Parietal_Inf_R SupraMarginal_L SupraMarginal_R Angular_L Angular_R Precuneus_L Precuneus_R
Paracentral_Lobule_L Paracentral_Lobule_R Caudate_L Caudate_R Putamen_L Putamen_R Pallidum_L Pallidum_R
Thalamus_L Thalamus_R Heschl_L Heschl_R Temporal_Sup_L Temporal_Sup_R Temporal_Pole_Sup_L
Temporal_Pole_Sup_R Temporal_Mid_L Temporal_Mid_R Temporal_Pole_Mid_L Temporal_Pole_Mid_R Temporal_Inf_L
Temporal_Inf_R Cerebelum_Crus1_L Cerebelum_Crus1_R Cerebelum_Crus2_L Cerebelum_Crus2_R Cerebelum_3_L
Cerebelum_3_R Cerebelum_4_5_L Cerebelum_4_5_R Cerebelum_6_L Cerebelum_6_R Cerebelum_7b_L Cerebelum_7b_R
Cerebelum_8_L Cerebelum_8_R Cerebelum_9_L Cerebelum_9_R Cerebelum_10_L Cerebelum_10_R Vermis_1_2 Vermis_3
Vermis_4_5 Vermis_6 Vermis_7 Vermis_8 Vermis_9 Vermis_10
"""
