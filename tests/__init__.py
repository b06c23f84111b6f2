"""The tests of castore, laid out by what they prove.

unit: one piece alone; property: laws, over inputs that Hypothesis makes; conformance: one suite a
contract; crash: power loss and kill at every step; damage: flipped and cut bytes; peers: real servers.
"""
