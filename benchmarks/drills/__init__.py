"""Kills, faults and hostile data: does a run end as promised?"""
