	Jlн╟зB╝╖BўМ╔B$cиB╜┤BЬ┼BА─йB
\╣B2╕╞Bw зB"ф╕B╙я╚Bг└йBRГ╕Bs╧╟Bx{зBК║BР├B╣зBх╕B9&┼BgкиBЛ▓╢BТ╣╔B▓┐зBЫV╣Bp╩B