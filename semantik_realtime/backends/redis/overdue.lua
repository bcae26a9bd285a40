-- Find holders whose deadline is over, by the server's clock; give.lua gives them to the caller.
--
-- KEYS  due (see hold.lua)    ARGV  most holders
-- Return their names, the one whose deadline was the first at the beginning.
local now = redis.call('TIME')
now = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', '0', ARGV[1])
