"""The UMLS semantic groups (McCray, Burgun and Bodenreider, MEDINFO 2001): 15 names for 127 semantic types."""

GROUPS = {
    "Activities": "T051 T052 T053 T054 T055 T056 T057 T064 T066",
    "Anatomy": "T017 T018 T021 T022 T023 T024 T025 T026 T029 T030 T031",
    "Chemicals": "T103 T104 T109 T114 T116 T120 T121 T122 T123 T125 T126 T127 T129 T130 T131 T192 T195 T196 T197 T200",
    "Concepts": "T077 T078 T079 T080 T081 T082 T089 T102 T169 T170 T171 T185",
    "Devices": "T074 T075 T203",
    "Disorders": "T019 T020 T033 T037 T046 T047 T048 T049 T050 T184 T190 T191",
    "Genes": "T028 T085 T086 T087 T088",
    "Geography": "T083",
    "Living beings": "T001 T002 T004 T005 T007 T008 T010 T011 T012 T013 T014 T015 T016 T096 T097 T098 T099 T100 T101 "
    "T194 T204",
    "Objects": "T071 T072 T073 T167 T168",
    "Occupations": "T090 T091",
    "Organisations": "T092 T093 T094 T095",
    "Phenomena": "T034 T038 T067 T068 T069 T070",
    "Physiology": "T032 T039 T040 T041 T042 T043 T044 T045 T201",
    "Procedures": "T058 T059 T060 T061 T062 T063 T065",
}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds.split()}


def semantic_group(types: tuple[str, ...]) -> str:
    """Return the group of a concept's first known semantic type, else that type itself, else "no type"."""
    known = [_GROUP_OF[kind] for kind in types if kind in _GROUP_OF]
    return known[0] if known else types[0] if types else "no type"
