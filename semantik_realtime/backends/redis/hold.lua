-- Hold jobs for a worker process that lives for some time more, by the server's clock.
--
-- KEYS  due (sorted set: holder -> its deadline in ms), jobs (hash: job -> record)
-- ARGV  holder, ms, keep_ms (how long both keys are kept after the deadline), count of the jobs
--       that have ended, those jobs, and then a job, its record, a job, its record, ...
-- Return 1 if the holder held something before the call, else 0.
local due, jobs, holder = KEYS[1], KEYS[2], ARGV[1]
local first = 5 + tonumber(ARGV[4])
-- Lua's stack has no room for all the arguments of a big call at once.
local CHUNK = 1000

local known = redis.call('HLEN', jobs) > 0
if not known and first > #ARGV then return 0 end
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
-- First the commands that add: a server whose memory is full refuses them, but not HDEL, and a
-- script that has written something is no longer refused.
redis.call('ZADD', due, string.format('%d', now + ARGV[2]), holder)
for from = first, #ARGV, CHUNK do
  redis.call('HSET', jobs, unpack(ARGV, from, math.min(from + CHUNK - 1, #ARGV)))
end
for from = 5, first - 1, CHUNK do
  redis.call('HDEL', jobs, unpack(ARGV, from, math.min(from + CHUNK - 1, first - 1)))
end
if first > 5 and redis.call('HLEN', jobs) == 0 then
  redis.call('ZREM', due, holder)
else
  local keep = string.format('%d', ARGV[2] + ARGV[3])
  redis.call('PEXPIRE', jobs, keep)
  redis.call('PEXPIRE', due, keep)
end
return known and 1 or 0
