J<$çA`ÌB"BQâñA¿	B¤gBýòA
æBUÏBtƒéALB‡!BÅ*÷A€ž
BžB